// Package encryption is the configuration by which Secrets are encrypted at rest, and the stages of changing its keys
// (k3s docs, security/secrets-encryption).
package encryption

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	keyBytes = 32
	identity = "identity" // the provider that does not encrypt
)

// Stages of a change of keys.
const (
	Start             = "start"
	Prepare           = "prepare"
	Rotate            = "rotate"
	ReencryptRequest  = "reencrypt_request"
	ReencryptActive   = "reencrypt_active"
	ReencryptFinished = "reencrypt_finished"
)

// Actions of `k3s secrets-encrypt`.
const (
	ActionEnable     = "enable"
	ActionDisable    = "disable"
	ActionPrepare    = "prepare"
	ActionRotate     = "rotate"
	ActionReencrypt  = "reencrypt"
	ActionRotateKeys = "rotate-keys"
)

// Key is a key of a provider.
type Key struct {
	Name   string `json:"name"`
	Secret string `json:"secret"` // base64
}

// Config is what is encrypted with which keys: the first one encrypts, all decrypt.
type Config struct {
	Provider string // aescbc or secretbox
	Keys     []Key
	Enabled  bool
}

// document is the form that the kube-apiserver reads.
type document struct {
	Kind       string     `json:"kind"`
	APIVersion string     `json:"apiVersion"`
	Resources  []resource `json:"resources"`
}

type resource struct {
	Resources []string              `json:"resources"`
	Providers []map[string]provider `json:"providers"`
}

type provider struct {
	Keys []Key `json:"keys,omitempty"`
}

// New makes a configuration with one key.
func New(name string) Config {
	return Config{Provider: name, Keys: []Key{newKey(name + "key")}, Enabled: true}
}

func newKey(name string) Key {
	secret := make([]byte, keyBytes)
	rand.Read(secret) // never fails (crypto/rand)
	return Key{name, base64.StdEncoding.EncodeToString(secret)}
}

// Parse reads a configuration of New's form. Errors: another form.
func Parse(content []byte) (Config, error) {
	var read document
	if err := json.Unmarshal(content, &read); err != nil {
		return Config{}, err
	}
	var c Config
	if len(read.Resources) != 1 {
		return c, errors.New("encryption configuration: want one entry in resources")
	}
	for at, item := range read.Resources[0].Providers {
		for name, settings := range item {
			if name == identity {
				continue
			}
			c.Provider, c.Keys, c.Enabled = name, settings.Keys, at == 0
		}
	}
	if len(c.Keys) == 0 {
		return c, errors.New("encryption configuration: no keys")
	}
	return c, nil
}

// Marshal writes the configuration.
func (c Config) Marshal() ([]byte, error) {
	providers := []map[string]provider{{c.Provider: {c.Keys}}, {identity: {}}}
	if !c.Enabled {
		slices.Reverse(providers)
	}
	return json.Marshal(document{
		Kind: "EncryptionConfiguration", APIVersion: "apiserver.config.k8s.io/v1",
		Resources: []resource{{Resources: []string{"secrets"}, Providers: providers}},
	})
}

// State is the text that tells a stage and a configuration: servers that are alike have the same.
func State(stage string, content []byte) string {
	sum := sha256.Sum256(content)
	return stage + "-" + hex.EncodeToString(sum[:])
}

// Stage is the stage in a text of State; that of a fresh cluster when there is none.
func Stage(state string) string {
	stage, _, _ := strings.Cut(state, "-")
	if stage == "" {
		return Start
	}
	return stage
}

// Apply is the configuration and the stage after an action. Errors: an action that is not next.
func (c Config) Apply(action, stage string, force bool, now time.Time) (Config, string, error) {
	fresh := func() Key { return newKey(fmt.Sprintf("%skey-%s", c.Provider, now.UTC().Format(time.RFC3339))) }
	must := func(allowed ...string) error {
		if force || slices.Contains(allowed, stage) {
			return nil
		}
		return fmt.Errorf("error, incorrect stage for %s: current stage is %s", action, stage)
	}
	c.Keys = slices.Clone(c.Keys)
	switch action {
	case ActionEnable:
		c.Enabled = true
		return c, Start, nil
	case ActionDisable:
		c.Enabled = false
		return c, Start, nil
	case ActionPrepare:
		c.Keys = append(c.Keys, fresh())
		return c, Prepare, must(Start, ReencryptFinished)
	case ActionRotate:
		last := len(c.Keys) - 1
		c.Keys = append([]Key{c.Keys[last]}, c.Keys[:last]...)
		return c, Rotate, must(Prepare)
	case ActionReencrypt:
		return c, ReencryptRequest, must(Rotate)
	case ActionRotateKeys:
		c.Keys = append([]Key{fresh()}, c.Keys...)
		return c, ReencryptRequest, must(Start, ReencryptFinished)
	}
	return c, stage, fmt.Errorf("unknown action %q", action)
}

// Finished is the configuration once everything is encrypted with the first key.
func (c Config) Finished() Config {
	c.Keys = c.Keys[:1]
	return c
}

// KeyType is the name that k3s prints for the cipher of a key.
func KeyType(name string) string {
	if strings.HasPrefix(name, "secretbox") {
		return "XSalsa20-POLY1305"
	}
	return "AES-CBC"
}
