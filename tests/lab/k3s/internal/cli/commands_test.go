package cli

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/snapshots"
	"slipway/tests/lab/k3s/internal/token"
)

// asked is a supervisor that remembers the last request and gives one answer.
type asked struct {
	url, data      string // data directory with the token of the server
	user, password string
	body           string
	status         int
	answer         any
}

func newAsked(t *testing.T) *asked {
	t.Helper()
	a := &asked{data: t.TempDir(), status: http.StatusOK, answer: struct{}{}}
	var ca []byte
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == cluster.PathCACerts {
			w.Write(ca)
			return
		}
		a.user, a.password, _ = r.BasicAuth()
		body, _ := io.ReadAll(r.Body)
		a.body = r.Method + " " + r.URL.Path + " " + string(body)
		if a.status != http.StatusOK {
			http.Error(w, "what went wrong", a.status)
			return
		}
		json.NewEncoder(w).Encode(a.answer)
	}))
	t.Cleanup(server.Close)
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	a.url = server.URL
	if err := os.MkdirAll(filepath.Join(a.data, "server"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := token.Token{Hash: token.HashCA(ca), User: cluster.UserServer, Password: "secret"}.Secure()
	if err := os.WriteFile(filepath.Join(a.data, "server", "token"), []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSnapshotRequests(t *testing.T) {
	a := newAsked(t)
	for line, want := range map[string]string{
		"save":                          `{"Operation":"save","Directory":"","Name":"on-demand","Names":[],"Compress":false,"Retention":5}`,
		"save --name x --dir /y":        `{"Operation":"save","Directory":"/y","Name":"x","Names":[],"Compress":false,"Retention":5}`,
		"save --snapshot-compress":      `{"Operation":"save","Directory":"","Name":"on-demand","Names":[],"Compress":true,"Retention":5}`,
		"delete a b":                    `{"Operation":"delete","Directory":"","Name":"on-demand","Names":["a","b"],"Compress":false,"Retention":5}`,
		"prune --snapshot-retention 10": `{"Operation":"prune","Directory":"","Name":"on-demand","Names":[],"Compress":false,"Retention":10}`,
		"ls":                            `{"Operation":"list","Directory":"","Name":"on-demand","Names":[],"Compress":false,"Retention":5}`,
	} {
		words := strings.Fields(line)
		arguments := append([]string{"--etcd-server", a.url, "--data-dir", a.data}, words[1:]...)
		if err := snapshotVerb(t.Context(), words[0], arguments, io.Discard); err != nil {
			t.Error(line, err)
		}
		if a.user != "server" || a.password != "secret" || a.body != "POST /db/snapshot "+want {
			t.Error(line, a.user, a.password, a.body)
		}
	}
	a.status = http.StatusInternalServerError
	err := snapshotVerb(t.Context(), "save", []string{"--etcd-server", a.url, "--data-dir", a.data}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "what went wrong") {
		t.Error("errors tell what the server says:", err)
	}
	if err := snapshotVerb(t.Context(), "restore", nil, io.Discard); err == nil {
		t.Error("an unknown verb")
	}
	if err := snapshotVerb(t.Context(), "save", []string{"--etcd-server", "https://127.0.0.1:1", "--data-dir", a.data}, io.Discard); err == nil {
		t.Error("a server that does not run")
	}
}

func TestSnapshotLists(t *testing.T) {
	files := []snapshots.File{{Name: "x-1", Location: "file:///d/x-1", Node: "n", Size: 12, Created: time.Unix(0, 0).UTC()}}
	var out bytes.Buffer
	if err := printSnapshots(&out, files, ""); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || strings.Join(strings.Fields(lines[0]), " ") != "Name Location Size Created" ||
		strings.Join(strings.Fields(lines[1]), " ") != "x-1 file:///d/x-1 12 1970-01-01T00:00:00Z" {
		t.Error(out.String())
	}
	out.Reset()
	if err := printSnapshots(&out, files, "json"); err != nil {
		t.Fatal(err)
	}
	var list struct {
		Kind  string
		Items []struct {
			Spec   struct{ SnapshotName, NodeName, Location string }
			Status struct {
				Size         int64
				CreationTime time.Time
				ReadyToUse   bool
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || list.Kind != "ETCDSnapshotFileList" || len(list.Items) != 1 {
		t.Fatal(out.String(), err)
	}
	if item := list.Items[0]; item.Spec.SnapshotName != "x-1" || item.Spec.NodeName != "n" || item.Status.Size != 12 || !item.Status.ReadyToUse {
		t.Error(item)
	}
	if err := printSnapshots(&out, nil, "xml"); err == nil {
		t.Error("xml")
	}
}

func TestTokenRotate(t *testing.T) {
	a := newAsked(t)
	var out bytes.Buffer
	if err := tokenRotate(t.Context(), []string{"--server", a.url, "--data-dir", a.data, "--new-token", "fresh"}, &out); err != nil {
		t.Fatal(err)
	}
	if a.body != `PUT /v1-k3s/token {"NewToken":"fresh"}` || a.user != "server" || a.password != "secret" {
		t.Error(a.body, a.user, a.password)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "WARNING: ") || lines[1] != "Token rotated, restart k3s nodes with new token" {
		t.Error(out.String())
	}
	if err := tokenRotate(t.Context(), []string{"--server", a.url, "--token", "given"}, io.Discard); err != nil || a.password != "given" || strings.Contains(a.body, `""`) {
		t.Error("a random token for none:", a.body, err)
	}
	a.status = http.StatusInternalServerError
	if err := tokenRotate(t.Context(), []string{"--server", a.url, "--data-dir", a.data}, io.Discard); err == nil || !strings.Contains(err.Error(), "what went wrong") {
		t.Error(err)
	}
}

func TestSecretsEncrypt(t *testing.T) {
	a := newAsked(t)
	run := func(words ...string) (string, error) {
		var out bytes.Buffer
		err := encryptVerb(t.Context(), words[0], append([]string{"--server", a.url, "--data-dir", a.data}, words[1:]...), &out)
		return out.String(), err
	}
	if out, err := run("rotate-keys"); err != nil || out != "keys rotated, reencryption started\n" ||
		a.body != `PUT /v1-k3s/encrypt/config {"Action":"rotate-keys","Force":false,"Skip":false}` {
		t.Error(out, a.body, err)
	}
	if _, err := run("reencrypt", "--force", "--skip"); err != nil || !strings.HasSuffix(a.body, `{"Action":"reencrypt","Force":true,"Skip":true}`) {
		t.Error(a.body, err)
	}
	if _, err := run("nonsense"); err == nil {
		t.Error("an unknown verb")
	}
	if out, err := run("status"); err != nil || out != "Encryption Status: Disabled, no configuration file found\n" {
		t.Error(out, err)
	}
	yes := true
	a.answer = cluster.EncryptionStatus{Stage: "rotate", ActiveKey: "aescbckey-2", Enable: &yes, HashError: "hash does not match between a and b", InactiveKeys: []string{"aescbckey"}}
	want := `Encryption Status: Enabled
Current Rotation Stage: rotate
Server Encryption Hashes: hash does not match between a and b

Active  Key Type  Name
------  --------  ----
 *      AES-CBC   aescbckey-2
        AES-CBC   aescbckey
`
	if out, err := run("status"); err != nil || out != want {
		t.Errorf("%s %v", out, err)
	}
	if out, err := run("status", "-o", "json"); err != nil || !strings.Contains(out, `"stage":"rotate","activekey":"aescbckey-2","enable":true`) {
		t.Error(out, err)
	}
	a.status = http.StatusInternalServerError
	if _, err := run("prepare"); err == nil || !strings.HasSuffix(err.Error(), "what went wrong: see server log for details") {
		t.Error(err)
	}
}
