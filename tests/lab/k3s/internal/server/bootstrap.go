package server

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/process"
)

const (
	bootstrapPrefix = "/bootstrap/"
	keyHashLength   = 12 // hex digits of the token's hash in the key
	dialTimeout     = 5 * time.Second
)

var errOtherToken = errors.New("bootstrap data already found and encrypted with different token")

// bootstrapFiles are what every server of a cluster has to share, below the server directory.
var bootstrapFiles = []string{
	"tls/server-ca.crt", "tls/server-ca.key", "tls/client-ca.crt", "tls/client-ca.key",
	"tls/request-header-ca.crt", "tls/request-header-ca.key", "tls/service.key",
	"tls/etcd/server-ca.crt", "tls/etcd/server-ca.key", "tls/etcd/peer-ca.crt", "tls/etcd/peer-ca.key",
	"cred/passwd", "cred/encryption-config.json", "cred/encryption-state.json",
}

// waitForEtcd waits until etcd answers and returns a client for it.
func (c *config) waitForEtcd(ctx context.Context, ca *pki.CA) (*clientv3.Client, error) {
	certificate, err := tls.LoadX509KeyPair(c.data.TLS("etcd", "client.crt"), c.data.TLS("etcd", "client.key"))
	if err != nil {
		return nil, err
	}
	roots, err := pki.Pool(ca.PEM)
	if err != nil {
		return nil, err
	}
	// The client would log each attempt that comes too early.
	dialer := &net.Dialer{}
	err = process.Poll(ctx, readyPollInterval, func(ctx context.Context) error {
		connection, err := dialer.DialContext(ctx, "tcp", etcdAddress)
		if err != nil {
			return err
		}
		return connection.Close()
	})
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{etcdURL}, DialTimeout: dialTimeout, Logger: zap.NewNop(),
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{certificate}},
	})
	if err != nil {
		return nil, err
	}
	return client, process.Poll(ctx, readyPollInterval, func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := client.Get(limited, bootstrapPrefix)
		return err
	})
}

// saveBootstrap keeps what other servers would need in the datastore, encrypted with the token.
// Errors: errOtherToken when the cluster was made with another token.
func (c *config) saveBootstrap(ctx context.Context, client *clientv3.Client, password string) error {
	found, err := client.Get(ctx, bootstrapPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	key := bootstrapKey(password)
	for _, pair := range found.Kvs {
		if string(pair.Key) != key {
			return errOtherToken
		}
	}
	files := map[string][]byte{}
	for _, name := range bootstrapFiles {
		content, err := os.ReadFile(c.data.Server(name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		files[name] = content
	}
	plain, err := json.Marshal(files)
	if err != nil {
		return err
	}
	sealed, err := seal(password, plain)
	if err != nil {
		return err
	}
	_, err = client.Put(ctx, key, string(sealed))
	return err
}

func bootstrapKey(password string) string {
	sum := sha256.Sum256([]byte(password))
	return bootstrapPrefix + hex.EncodeToString(sum[:])[:keyHashLength]
}

func seal(password string, plain []byte) ([]byte, error) {
	key := sha256.Sum256([]byte("bootstrap:" + password))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce) // never fails (crypto/rand)
	return aead.Seal(nonce, nonce, plain, nil), nil
}
