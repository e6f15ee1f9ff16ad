package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/encryption"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/process"
)

const encryptionHash = "k3s.io/encryption-config-hash"

func (c *config) encryptionFile() string { return c.data.Server("cred", "encryption-config.json") }
func (c *config) encryptionStateFile() string {
	return c.data.Server("cred", "encryption-state.json")
}

// ensureEncryption writes the configuration by which the kube-apiserver encrypts Secrets at rest, with a new key where
// there is none, and returns its name; empty without option secrets-encryption.
func (c *config) ensureEncryption() (string, error) {
	if !c.values.Bool("secrets-encryption") {
		return "", nil
	}
	name := c.encryptionFile()
	content, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if content, err = encryption.New(c.values.String("secrets-encryption-provider")).Marshal(); err == nil {
			err = paths.WriteFile(name, content, 0o600)
		}
	}
	if err != nil {
		return "", err
	}
	present, err := c.encryptionState()
	if err != nil {
		return "", err
	}
	wanted := encryption.State(encryption.Stage(present), content)
	if present == wanted {
		return name, nil
	}
	return name, paths.WriteFile(c.encryptionStateFile(), []byte(wanted), 0o600)
}

// encryptionState tells stage and configuration of this server; empty where there is none.
func (c *config) encryptionState() (string, error) {
	content, err := os.ReadFile(c.encryptionStateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(content), err
}

// encrypter does what `k3s secrets-encrypt` asks for.
type encrypter struct {
	config *config
	nodes  *nodes
	// reload makes the kube-apiserver read its configuration anew.
	reload func() error
	// lifetime is that of the server: a re-encryption outlives the request.
	lifetime context.Context
	mutex    sync.Mutex
}

func (e *encrypter) paths() map[string]http.HandlerFunc {
	ready := func(handle http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if e.nodes.store.client.Load() == nil {
				http.Error(w, "datastore not ready", http.StatusServiceUnavailable)
				return
			}
			handle(w, r)
		}
	}
	return map[string]http.HandlerFunc{
		"GET " + cluster.PathEncryptStatus: ready(func(w http.ResponseWriter, r *http.Request) {
			status, err := e.status(r.Context())
			answer(w, status, err)
		}),
		"PUT " + cluster.PathEncrypt: ready(func(w http.ResponseWriter, r *http.Request) {
			var request cluster.EncryptionRequest
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestLimit)).Decode(&request); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			err := e.change(r.Context(), request)
			if err != nil {
				logrus.Errorf("secrets-encrypt %s: %v", request.Action, err)
			}
			answer(w, struct{}{}, err)
		}),
	}
}

// read reads the configuration and the stage of this server; found is false without a configuration.
func (e *encrypter) read() (c encryption.Config, stage string, found bool, err error) {
	content, err := os.ReadFile(e.config.encryptionFile())
	if errors.Is(err, fs.ErrNotExist) {
		return c, encryption.Start, false, nil
	}
	if err != nil {
		return c, "", false, err
	}
	state, err := e.config.encryptionState()
	if err != nil {
		return c, "", false, err
	}
	c, err = encryption.Parse(content)
	return c, encryption.Stage(state), true, err
}

func (e *encrypter) status(ctx context.Context) (cluster.EncryptionStatus, error) {
	c, stage, found, err := e.read()
	if err != nil || !found {
		return cluster.EncryptionStatus{}, err
	}
	status := cluster.EncryptionStatus{Stage: stage, Enable: &c.Enabled, HashMatch: true}
	var mismatch hashError
	if err := e.compareHashes(ctx); errors.As(err, &mismatch) {
		status.HashMatch, status.HashError = false, err.Error()
	} else if err != nil {
		return status, err
	}
	for at, key := range c.Keys {
		if at == 0 {
			status.ActiveKey = key.Name
		} else {
			status.InactiveKeys = append(status.InactiveKeys, key.Name)
		}
	}
	return status, nil
}

// hashError names two servers whose configurations differ.
type hashError struct{ one, other string }

func (e hashError) Error() string {
	return fmt.Sprintf("hash does not match between %s and %s", e.one, e.other)
}

// compareHashes compares what the servers' Nodes tell of their configurations. Errors: hashError, no answer.
func (e *encrypter) compareHashes(ctx context.Context) error {
	selector := labels.Set{etcdRole: "true"}.String()
	found, err := e.nodes.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return err
	}
	for _, node := range found.Items {
		if node.Annotations[encryptionHash] != found.Items[0].Annotations[encryptionHash] {
			return hashError{found.Items[0].Name, node.Name}
		}
	}
	return nil
}

// change does an action. Errors: one that is not next, servers that have not all been restarted since the last.
func (e *encrypter) change(ctx context.Context, request cluster.EncryptionRequest) error {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	c, stage, found, err := e.read()
	if err != nil {
		return err
	}
	if !found {
		if request.Action != encryption.ActionEnable {
			return errors.New("secrets encryption has no configuration file")
		}
		c = encryption.New(e.config.values.String("secrets-encryption-provider"))
	}
	if request.Action != encryption.ActionEnable && request.Action != encryption.ActionDisable && !request.Force {
		if err := e.compareHashes(ctx); err != nil {
			return err
		}
	}
	c, stage, err = c.Apply(request.Action, stage, request.Force, time.Now())
	if err != nil {
		return err
	}
	if err := e.write(ctx, c, stage); err != nil {
		return err
	}
	switch request.Action {
	case encryption.ActionRotateKeys:
		// Nothing may be encrypted with a key that this kube-apiserver does not know yet.
		if err := e.reload(); err != nil {
			return err
		}
		go e.reencrypt(c, false)
	case encryption.ActionReencrypt:
		go e.reencrypt(c, request.Skip)
	}
	return nil
}

// write writes configuration and stage to the disk, the datastore and this server's Node.
func (e *encrypter) write(ctx context.Context, c encryption.Config, stage string) error {
	content, err := c.Marshal()
	if err != nil {
		return err
	}
	state := encryption.State(stage, content)
	if err := paths.WriteFile(e.config.encryptionFile(), content, 0o600); err != nil {
		return err
	}
	if err := paths.WriteFile(e.config.encryptionStateFile(), []byte(state), 0o600); err != nil {
		return err
	}
	known, err := readPasswords(e.config.data.Server("cred", "passwd"))
	if err != nil {
		return err
	}
	if err := e.config.putBootstrap(ctx, e.nodes.store.client.Load(), known[cluster.UserServer]); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{encryptionHash: state}}})
	if err != nil {
		return err
	}
	_, err = e.nodes.client.CoreV1().Nodes().Patch(ctx, e.config.node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

// reencrypt writes each Secret anew, so that the first key encrypts it, and drops the other keys unless told to keep them.
func (e *encrypter) reencrypt(c encryption.Config, keep bool) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	err := e.write(e.lifetime, c, encryption.ReencryptActive)
	if err == nil {
		err = e.rewriteSecrets()
	}
	if err == nil {
		if !keep {
			c = c.Finished()
		}
		err = e.write(e.lifetime, c, encryption.ReencryptFinished)
	}
	if err != nil {
		logrus.Errorf("secrets reencryption failed: %v", err)
		return
	}
	logrus.Info("secrets reencrypted")
}

func (e *encrypter) rewriteSecrets() error {
	all, err := e.nodes.client.CoreV1().Secrets(corev1.NamespaceAll).List(e.lifetime, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, secret := range all.Items {
		_, err := e.nodes.client.CoreV1().Secrets(secret.Namespace).Update(e.lifetime, &secret, metav1.UpdateOptions{})
		// One that was changed or deleted meanwhile is written anew, or gone.
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
	}
	return nil
}

// reloadAPIServer starts the kube-apiserver anew. The controllers stop before: without it they would give up.
func (c *config) reloadAPIServer(ctx context.Context, group *process.Group, file string, serverCA *pki.CA) error {
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kube-apiserver"} {
		group.End(name)
	}
	if err := c.startAPIServer(group, file); err != nil {
		return err
	}
	if err := c.waitForAPIServer(ctx, serverCA); err != nil {
		return err
	}
	return c.startControllers(group)
}
