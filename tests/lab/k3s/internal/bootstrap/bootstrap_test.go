package bootstrap

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newDirectory is a server directory with two files that changed at the given time.
func newDirectory(t *testing.T, changed time.Time, passwd string) string {
	t.Helper()
	directory := t.TempDir()
	if err := (Data{"tls/server-ca.crt": {Content: []byte("ca")}, "cred/passwd": {Content: []byte(passwd)}}).Write(directory); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tls/server-ca.crt", "cred/passwd"} {
		if err := os.Chtimes(filepath.Join(directory, name), changed, changed); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

func TestDataComesBackWithItsTokenOnly(t *testing.T) {
	data, err := Collect(newDirectory(t, time.Now(), "a"))
	if err != nil || len(data) != 2 {
		t.Fatal(data, err)
	}
	sealed, err := data.Seal("secret")
	if err != nil || strings.Contains(string(sealed), "passwd") {
		t.Fatal("must be encrypted:", err)
	}
	back, err := Open("secret", sealed)
	if err != nil || !back.Equal(data) || !back["cred/passwd"].Timestamp.Equal(data["cred/passwd"].Timestamp) {
		t.Error(back, err)
	}
	for _, broken := range [][]byte{sealed, sealed[:5], nil} {
		if _, err := Open("other", broken); !errors.Is(err, ErrOtherToken) {
			t.Error(err)
		}
	}
}

func TestFind(t *testing.T) {
	sealed, err := Data{"cred/passwd": {Content: []byte("x")}}.Seal("new")
	if err != nil {
		t.Fatal(err)
	}
	pairs := map[string][]byte{Key("new"): sealed}
	if data, found, err := Find(pairs, "new"); err != nil || !found || string(data["cred/passwd"].Content) != "x" {
		t.Error(data, found, err)
	}
	if _, _, err := Find(pairs, "old"); !errors.Is(err, ErrOtherToken) {
		t.Error("a datastore of another token:", err)
	}
	if _, found, err := Find(nil, "old"); found || err != nil {
		t.Error("an empty datastore has no token yet:", err)
	}
	if key := Key("new"); len(key) != len("/bootstrap/")+12 {
		t.Error(key)
	}
}

func TestFilesOfTheDatastoreReplaceOlderOnes(t *testing.T) {
	now := time.Now()
	data, err := Collect(newDirectory(t, now, "new"))
	if err != nil {
		t.Fatal(err)
	}
	older := newDirectory(t, now.Add(-time.Hour), "old")
	if err := os.Remove(filepath.Join(older, "tls/server-ca.crt")); err != nil {
		t.Fatal(err)
	}
	if err := data.Reconcile(older); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"cred/passwd": "new", "tls/server-ca.crt": "ca"} {
		if content, err := os.ReadFile(filepath.Join(older, name)); err != nil || string(content) != want {
			t.Error(name, string(content), err)
		}
	}
	if info, err := os.Stat(filepath.Join(older, "cred/passwd")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

// The text is that of k3s: operators search for it.
func TestNewerFilesEndTheStart(t *testing.T) {
	now := time.Now()
	data, err := Collect(newDirectory(t, now, "datastore"))
	if err != nil {
		t.Fatal(err)
	}
	newer := newDirectory(t, now.Add(4*time.Second), "mine")
	err = data.Reconcile(newer)
	want := filepath.Join(newer, "cred/passwd") + " newer than datastore and could cause a cluster outage. Remove the file(s) from disk"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Error(err)
	}
	if content, _ := os.ReadFile(filepath.Join(newer, "cred/passwd")); string(content) != "mine" {
		t.Error("nothing may be changed:", string(content))
	}
	// Clocks differ a little.
	if err := data.Reconcile(newDirectory(t, now.Add(2*time.Second), "mine")); err != nil {
		t.Error(err)
	}
	// Equal contents have no age.
	if err := data.Reconcile(newDirectory(t, now.Add(time.Hour), "datastore")); err != nil {
		t.Error(err)
	}
}

func TestDataWithoutTimesIsNotCompared(t *testing.T) {
	old, err := json.Marshal(map[string][]byte{"cred/passwd": []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	aead, err := aeadFor("secret")
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, aead.NonceSize())
	if data, err := Open("secret", aead.Seal(nonce, nonce, old, nil)); err != nil || len(data) != 0 {
		t.Error(data, err)
	}
}
