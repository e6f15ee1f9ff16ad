// Package nodepassword makes and checks the hashes of node passwords, by which a node name stays with one machine.
package nodepassword

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/scrypt"
)

const (
	version   = 1
	costPower = 15
	blocks    = 8
	parallel  = 1
	keyLength = 64
	saltBytes = 8
)

// ErrMismatch tells that a password belongs to another machine.
var ErrMismatch = errors.New("node password does not match")

// SecretName is the name of the Secret in kube-system that holds the hash for a node.
func SecretName(node string) string { return strings.ToLower(node) + ".node-password.k3s" }

// Hash returns a salted hash in the form "$version:salt:n:r:p:key".
func Hash(password string) (string, error) {
	salt := make([]byte, saltBytes)
	rand.Read(salt) // never fails (crypto/rand)
	key, err := scrypt.Key([]byte(password), salt, 1<<costPower, blocks, parallel, keyLength)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("$%d:%x:%d:%d:%d:%s", version, salt, costPower, blocks, parallel, base64.RawStdEncoding.EncodeToString(key)), nil
}

// Verify compares a password with a hash. Errors: ErrMismatch, malformed hash.
func Verify(hash, password string) error {
	fields := strings.Split(hash, ":")
	if len(fields) != 6 || fields[0] != "$"+strconv.Itoa(version) {
		return errors.New("malformed node password hash")
	}
	salt, err := hex.DecodeString(fields[1])
	if err != nil {
		return fmt.Errorf("malformed node password hash: %w", err)
	}
	numbers := make([]int, 3)
	for i := range numbers {
		if numbers[i], err = strconv.Atoi(fields[2+i]); err != nil {
			return fmt.Errorf("malformed node password hash: %w", err)
		}
	}
	want, err := base64.RawStdEncoding.DecodeString(fields[5])
	if err != nil {
		return fmt.Errorf("malformed node password hash: %w", err)
	}
	got, err := scrypt.Key([]byte(password), salt, 1<<numbers[0], numbers[1], numbers[2], len(want))
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return ErrMismatch
	}
	return nil
}
