package nodepassword

import (
	"errors"
	"testing"
)

func TestHash(t *testing.T) {
	hash, err := Hash("secret")
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(hash, "secret"); err != nil {
		t.Error(err)
	}
	if err := Verify(hash, "other"); !errors.Is(err, ErrMismatch) {
		t.Error(err)
	}
	if err := Verify("nonsense", "secret"); err == nil || errors.Is(err, ErrMismatch) {
		t.Error(err)
	}
}

func TestSecretNameIsLowerCase(t *testing.T) {
	if got := SecretName("Node-1"); got != "node-1.node-password.k3s" {
		t.Error(got)
	}
}
