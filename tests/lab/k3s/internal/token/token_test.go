package token

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var hash = strings.Repeat("ab", 32)

func TestParse(t *testing.T) {
	for text, want := range map[string]Token{
		"secret":                          {Password: "secret"},
		"K10secret":                       {Password: "K10secret"},
		"pass:word":                       {Password: "pass:word"},
		"K10" + hash + "::server:se:cret": {Hash: hash, User: "server", Password: "se:cret"},
		"abcdef.0123456789abcdef":         {ID: "abcdef", Password: "0123456789abcdef"},
		"K10" + hash + "::abcdef.0123456789abcdef": {Hash: hash, ID: "abcdef", Password: "0123456789abcdef"},
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "invalid token format",
		"K10abc::server:secret":    "invalid token CA hash length",
		"K10" + hash + "::":        "invalid token format",
		"K10" + hash + "::user":    "invalid token format",
		"K10" + hash + "::user:":   "invalid token format",
		"K10" + hash + "::" + ":p": "invalid token format",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestSecureIsWhatParseReads(t *testing.T) {
	for _, want := range []Token{{Hash: hash, User: "server", Password: "p"}, {Hash: hash, ID: "abcdef", Password: "0123456789abcdef"}} {
		if got, err := Parse(want.Secure()); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestCheckCA(t *testing.T) {
	ca := []byte("-----BEGIN CERTIFICATE-----\n")
	sum := sha256.Sum256(ca)
	right := hex.EncodeToString(sum[:])
	if err := (Token{Hash: right}).CheckCA(ca); err != nil {
		t.Error(err)
	}
	if err := (Token{}).CheckCA(ca); err != nil {
		t.Error("the short form pins nothing:", err)
	}
	want := "token CA hash does not match the Cluster CA certificate hash: " + hash + " != " + right
	if err := (Token{Hash: hash}).CheckCA(ca); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestRandomBootstrapIsABootstrapToken(t *testing.T) {
	text := RandomBootstrap()
	if parsed, err := Parse(text); err != nil || parsed.ID == "" {
		t.Errorf("%s: %+v, %v", text, parsed, err)
	}
	if text == RandomBootstrap() {
		t.Error("twice the same")
	}
}

func TestFromFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "token")
	if _, err := FromFile(name); !os.IsNotExist(err) {
		t.Error("missing file:", err)
	}
	os.WriteFile(name, []byte("\n"), 0o600)
	if _, err := FromFile(name); err == nil {
		t.Error("an empty token file is an error")
	}
	os.WriteFile(name, []byte("secret\n"), 0o600)
	if got, err := FromFile(name); err != nil || got != "secret" {
		t.Error(got, err)
	}
}
