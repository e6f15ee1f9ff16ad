// Package token handles the tokens by which nodes join a cluster.
//
// Forms (k3s docs, cli/token): short "password"; secure "K10<CA hash>::<user>:<password>";
// bootstrap "<id>.<secret>", also with "K10<CA hash>::" before it.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"regexp"
	"strings"
)

const (
	prefix     = "K10"
	hashLength = sha256.Size * 2
	alphabet   = "0123456789abcdefghijklmnopqrstuvwxyz"
)

var bootstrap = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)

// ErrFormat tells that a text is no token.
var ErrFormat = errors.New("invalid token format; must be in format K10<CA-HASH>::<USERNAME>:<PASSWORD> or <PASSWORD>")

// Token is a parsed token; Hash and User are empty in the short form, ID is set in the bootstrap form only.
type Token struct {
	Hash, User, Password, ID string
}

// Parse reads a token in any form. Errors: ErrFormat, "invalid token CA hash length".
func Parse(text string) (Token, error) {
	var parsed Token
	rest, secure := strings.CutPrefix(text, prefix)
	if secure {
		hash, credentials, found := strings.Cut(rest, "::")
		// A password may itself begin with K10: only the separator makes it the secure form.
		if found {
			if len(hash) != hashLength {
				return Token{}, errors.New("invalid token CA hash length")
			}
			parsed.Hash, text = hash, credentials
		}
	}
	if text == "" {
		return Token{}, ErrFormat
	}
	if parts := bootstrap.FindStringSubmatch(text); parts != nil {
		parsed.ID, parsed.Password = parts[1], parts[2]
		return parsed, nil
	}
	if parsed.Hash != "" {
		user, password, found := strings.Cut(text, ":")
		if !found || user == "" || password == "" {
			return Token{}, ErrFormat
		}
		parsed.User, parsed.Password = user, password
		return parsed, nil
	}
	parsed.Password = text
	return parsed, nil
}

// Secure is the secure form of a token.
func (t Token) Secure() string {
	if t.ID != "" {
		return fmt.Sprintf("%s%s::%s.%s", prefix, t.Hash, t.ID, t.Password)
	}
	return fmt.Sprintf("%s%s::%s:%s", prefix, t.Hash, t.User, t.Password)
}

// CheckCA compares the hash in the token, if there is one, with the CA that a server presents (PEM).
func (t Token) CheckCA(ca []byte) error {
	if t.Hash == "" {
		return nil
	}
	if actual := HashCA(ca); actual != t.Hash {
		return fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", t.Hash, actual)
	}
	return nil
}

// HashCA is the hash of the cluster CA as it stands in tokens: SHA-256 of the PEM file (self-signed CA).
func HashCA(ca []byte) string {
	sum := sha256.Sum256(ca)
	return hex.EncodeToString(sum[:])
}

// Random returns a random text of hexadecimal digits standing for the given number of bytes.
func Random(bytes int) string {
	buffer := make([]byte, bytes)
	rand.Read(buffer) // never fails (crypto/rand)
	return hex.EncodeToString(buffer)
}

// RandomBootstrap returns a new token in the bootstrap form "<id>.<secret>".
func RandomBootstrap() string {
	text := make([]byte, 22)
	for i := range text {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			panic(err) // never happens (crypto/rand)
		}
		text[i] = alphabet[n.Int64()]
	}
	return string(text[:6]) + "." + string(text[6:])
}

// FromFile reads a token file; the first line counts. Errors: unreadable or empty file.
func FromFile(name string) (string, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(content)), "\n")
	if line == "" {
		return "", fmt.Errorf("token file %s is empty", name)
	}
	return line, nil
}
