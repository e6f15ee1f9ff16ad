package agent

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/token"
)

func noEnv(string) string { return "" }

func TestTokenAndServerAreRequired(t *testing.T) {
	for want, arguments := range map[string][]string{
		"--token is required":  {"--server", "https://x:6443"},
		"--server is required": {"--token", "t"},
	} {
		values, _, err := options.Parse(options.Agent, arguments, noEnv)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Check(values); err == nil || err.Error() != want {
			t.Error(want, err)
		}
	}
}

func TestOnlyHTTPS(t *testing.T) {
	if _, err := cluster.ParseServerURL("http://x:6443"); err == nil || !strings.Contains(err.Error(), "only https:// URLs are supported") {
		t.Error(err)
	}
	if _, err := cluster.ParseServerURL("https://x:6443"); err != nil {
		t.Error(err)
	}
}

func TestIdentity(t *testing.T) {
	values, _, err := options.Parse(options.Agent, []string{"--node-name", "NODE-A", "--node-ip", "10.0.0.1"}, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	node, ips, err := Identity(values)
	if err != nil || node != "node-a" || len(ips) != 1 || ips[0] != "10.0.0.1" {
		t.Error(node, ips, err)
	}
	for _, arguments := range [][]string{{"--node-ip", "nonsense"}, {"--node-taint", "key"}, {"--node-taint", "key=v:Sometimes"}} {
		values, _, err := options.Parse(options.Agent, arguments, noEnv)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Identity(values); err == nil {
			t.Error(arguments, "was accepted")
		}
	}
}

func TestCAIsPinnedByTheToken(t *testing.T) {
	var ca []byte
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(ca) }))
	defer server.Close()
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	good := token.Token{Hash: token.HashCA(ca), User: "node", Password: "p"}
	if _, err := newJoiner(t.Context(), server.URL, good); err != nil {
		t.Error(err)
	}
	other := token.Token{Hash: strings.Repeat("0", 64), User: "node", Password: "p"}
	if _, err := newJoiner(t.Context(), server.URL, other); err == nil || !strings.Contains(err.Error(), "token CA hash does not match") {
		t.Error(err)
	}
}

func TestNodePasswordIsMadeOnce(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "node")
	first, err := nodePassword(directory)
	if err != nil || len(first) != 32 {
		t.Fatal(first, err)
	}
	if second, err := nodePassword(directory); err != nil || second != first {
		t.Error(second, err)
	}
	info, err := os.Stat(filepath.Join(directory, "password"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
}

func TestResolvConf(t *testing.T) {
	directory := t.TempDir()
	put := func(name, content string) string {
		t.Helper()
		file := filepath.Join(directory, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	loopback, good := put("loopback", "nameserver 127.0.0.53\n"), put("good", "search x\nnameserver 10.0.0.1\n")
	if got, err := resolvConf(paths.Data(directory), loopback, good); err != nil || got != good {
		t.Error(got, err)
	}
	got, err := resolvConf(paths.Data(directory), loopback, put("empty", ""))
	if err != nil || got != filepath.Join(directory, "agent", "etc", "resolv.conf") {
		t.Error(got, err)
	}
}

func TestNetworkOfANode(t *testing.T) {
	directory := t.TempDir()
	file := filepath.Join(directory, "subnet.env")
	if _, err := readSubnet(file); !os.IsNotExist(err) {
		t.Error(err)
	}
	if err := os.WriteFile(file, []byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readSubnet(file); err == nil {
		t.Error("half a file was accepted")
	}
	if err := os.WriteFile(file, []byte("FLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := readSubnet(file)
	if err != nil || found != (subnet{"10.42.1.0/24", 1450}) {
		t.Fatal(found, err)
	}
	if err := os.MkdirAll(filepath.Join(directory, "agent/etc/cni/net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeCNI(paths.Data(directory), found); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(directory, "agent/etc/cni/net.d/10-flannel.conflist"))
	var list struct {
		Plugins []struct {
			Type string
			MTU  int
		}
	}
	if err != nil || json.Unmarshal(content, &list) != nil || list.Plugins[0].MTU != 1450 {
		t.Error("the bridge must have flannel's MTU:", string(content), err)
	}
}
