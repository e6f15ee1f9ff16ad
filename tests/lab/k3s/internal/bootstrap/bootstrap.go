// Package bootstrap holds what the servers of a cluster share: authorities, passwords and keys. It lies in the
// datastore, encrypted with the token, and goes to servers that join.
package bootstrap

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"slipway/tests/lab/k3s/internal/paths"
)

const (
	// Prefix of the one key in the datastore; what follows tells the token.
	Prefix        = "/bootstrap/"
	keyHashLength = 12 // hex digits of the token's hash in the key
	// A file that is this much newer than the datastore's copy is an operator's, or another cluster's.
	clockSkew = 3 * time.Second

	directoryMode   = 0o700
	certificateMode = 0o644
	secretMode      = 0o600
)

// ErrOtherToken tells that the cluster was made, or its token rotated, with another token than the one at hand.
var ErrOtherToken = errors.New("bootstrap data already found and encrypted with different token")

// Names are the files that servers share, below the server directory.
var Names = []string{
	"tls/server-ca.crt", "tls/server-ca.key", "tls/client-ca.crt", "tls/client-ca.key",
	"tls/request-header-ca.crt", "tls/request-header-ca.key", "tls/service.key",
	"tls/etcd/server-ca.crt", "tls/etcd/server-ca.key", "tls/etcd/peer-ca.crt", "tls/etcd/peer-ca.key",
	"cred/passwd", "cred/encryption-config.json", "cred/encryption-state.json",
}

// File is one file with the time of its last change.
type File struct {
	Timestamp time.Time
	Content   []byte
}

// Data is what servers share, by the names of files.
type Data map[string]File

// Collect reads the files that are there.
func Collect(directory string) (Data, error) {
	data := Data{}
	for _, name := range Names {
		file := filepath.Join(directory, name)
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		data[name] = File{info.ModTime(), content}
	}
	return data, nil
}

// Equal tells whether two sets have the same files with the same contents; times do not count.
func (d Data) Equal(other Data) bool {
	if len(d) != len(other) {
		return false
	}
	for name, file := range d {
		if !bytes.Equal(file.Content, other[name].Content) {
			return false
		}
	}
	return true
}

// Write puts the files into the server directory, over those that are there; unknown names are left out.
func (d Data) Write(directory string) error {
	for _, name := range Names {
		file, found := d[name]
		if !found {
			continue
		}
		target := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(target), directoryMode); err != nil {
			return err
		}
		mode := os.FileMode(secretMode)
		if strings.HasSuffix(name, ".crt") {
			mode = certificateMode
		}
		if err := paths.WriteFile(target, file.Content, mode); err != nil {
			return err
		}
	}
	return nil
}

// Reconcile makes the files of the server directory those of the datastore. Errors: a file that differs and is newer
// than the datastore's: it may be of another cluster, and nobody but an operator can tell.
func (d Data) Reconcile(directory string) error {
	local, err := Collect(directory)
	if err != nil {
		return err
	}
	var newer []string
	differing := Data{}
	for name, file := range d {
		mine, found := local[name]
		if found && bytes.Equal(mine.Content, file.Content) {
			continue
		}
		differing[name] = file
		if found && mine.Timestamp.Sub(file.Timestamp) >= clockSkew {
			newer = append(newer, filepath.Join(directory, name))
		}
	}
	if len(newer) > 0 {
		slices.Sort(newer)
		return fmt.Errorf("%s newer than datastore and could cause a cluster outage. Remove the file(s) from disk and restart to be recreated from datastore.", strings.Join(newer, ", "))
	}
	return differing.Write(directory)
}

// Key is the key in the datastore for a token's password.
func Key(password string) string {
	sum := sha256.Sum256([]byte(password))
	return Prefix + hex.EncodeToString(sum[:])[:keyHashLength]
}

// Seal encrypts the data with a token's password.
func (d Data) Seal(password string) ([]byte, error) {
	plain, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	aead, err := aeadFor(password)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce) // never fails (crypto/rand)
	return aead.Seal(nonce, nonce, plain, nil), nil
}

// Open decrypts what Seal made. Data of a build that kept no times has no files: it is not compared, and saved anew.
// Errors: ErrOtherToken.
func Open(password string, sealed []byte) (Data, error) {
	aead, err := aeadFor(password)
	if err != nil {
		return nil, err
	}
	size := aead.NonceSize()
	if len(sealed) < size {
		return nil, ErrOtherToken
	}
	plain, err := aead.Open(nil, sealed[:size], sealed[size:], nil)
	if err != nil {
		return nil, ErrOtherToken
	}
	var data Data
	if err := json.Unmarshal(plain, &data); err != nil {
		return Data{}, nil
	}
	return data, nil
}

// Find opens the one entry among key-value pairs of the datastore. Errors: ErrOtherToken when there are only others.
func Find(pairs map[string][]byte, password string) (data Data, found bool, err error) {
	if len(pairs) == 0 {
		return nil, false, nil
	}
	sealed, found := pairs[Key(password)]
	if !found {
		return nil, false, ErrOtherToken
	}
	data, err = Open(password, sealed)
	return data, true, err
}

func aeadFor(password string) (cipher.AEAD, error) {
	key := sha256.Sum256([]byte("bootstrap:" + password))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
