package pki

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newCA(t *testing.T) (*CA, string) {
	t.Helper()
	directory := t.TempDir()
	ca, err := EnsureCA("test-ca", filepath.Join(directory, "ca.crt"), filepath.Join(directory, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	return ca, directory
}

func mode(t *testing.T, name string) os.FileMode {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestAuthorityIsMadeOnce(t *testing.T) {
	ca, directory := newCA(t)
	again, err := EnsureCA("test-ca", filepath.Join(directory, "ca.crt"), filepath.Join(directory, "ca.key"))
	if err != nil || !bytes.Equal(ca.PEM, again.PEM) {
		t.Error("a second start must keep the authority:", err)
	}
	if got := mode(t, filepath.Join(directory, "ca.crt")); got != 0o644 {
		t.Errorf("certificate %o", got)
	}
	if got := mode(t, filepath.Join(directory, "ca.key")); got != 0o600 {
		t.Errorf("key %o", got)
	}
}

func TestEnsureReissuesOnlyWhenNeeded(t *testing.T) {
	ca, directory := newCA(t)
	certificate, key := filepath.Join(directory, "leaf.crt"), filepath.Join(directory, "leaf.key")
	leaf := Leaf{Name: "k3s", Hosts: []string{"localhost", "127.0.0.1", "::1"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	issue := func(leaf Leaf) []byte {
		t.Helper()
		if err := ca.Ensure(leaf, certificate, key); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(certificate)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	first := issue(leaf)
	if !bytes.Equal(first, issue(leaf)) {
		t.Error("the same names must keep the certificate")
	}
	leaf.Hosts = append(leaf.Hosts, "added.example")
	second := issue(leaf)
	if bytes.Equal(first, second) {
		t.Error("a new name must give a new certificate")
	}
	parsed, err := ParseCertificate(second)
	if err != nil || parsed.VerifyHostname("added.example") != nil {
		t.Error(err)
	}
	lifetime = renewBefore - time.Hour
	short := issue(Leaf{Name: "short", Usages: leaf.Usages})
	lifetime = leafLifetime
	if bytes.Equal(short, issue(Leaf{Name: "short", Usages: leaf.Usages})) {
		t.Error("a certificate with less than 120 days to live must be renewed")
	}
	second = issue(leaf)
	other, _ := newCA(t)
	ca = other
	if bytes.Equal(second, issue(leaf)) {
		t.Error("another authority must give a new certificate")
	}
}

func TestRequestSaysNothingOfNames(t *testing.T) {
	ca, directory := newCA(t)
	key := filepath.Join(directory, "node.key")
	request, err := Request(key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.SignRequest(Leaf{Name: "system:node:n", Groups: []string{"system:nodes"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, request)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseCertificate(issued)
	if err != nil || parsed.Subject.CommonName != "system:node:n" || parsed.Subject.Organization[0] != "system:nodes" || parsed.IsCA {
		t.Error(parsed.Subject, err)
	}
	if got := mode(t, key); got != 0o600 {
		t.Errorf("key %o", got)
	}
	if _, err := ca.SignRequest(Leaf{}, []byte("nonsense")); err == nil {
		t.Error("nonsense was signed")
	}
}

func TestServiceKeyIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "service.key")
	if err := EnsureServiceKey(file); err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(file)
	if err := EnsureServiceKey(file); err != nil {
		t.Fatal(err)
	}
	if second, _ := os.ReadFile(file); !bytes.Equal(first, second) || len(first) == 0 {
		t.Error("the key changed")
	}
}
