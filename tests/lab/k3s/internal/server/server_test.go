package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/token"
)

func noEnv(string) string { return "" }

// testConfig is a server's configuration in a directory of its own.
func testConfig(t *testing.T, directory string, arguments ...string) *config {
	t.Helper()
	arguments = append(arguments, "--data-dir", directory, "--write-kubeconfig", filepath.Join(directory, "k3s.yaml"))
	values, _, err := options.Parse(options.Server, arguments, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConfig(values, "node-a", []string{"10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// prepare does what a start does before anything runs.
func prepare(t *testing.T, c *config) *authorities {
	t.Helper()
	all, err := ensureAuthorities(c.data)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ensureCertificates(all); err != nil {
		t.Fatal(err)
	}
	passwords, err := c.ensurePasswords()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.writeTokens(all.server.PEM, passwords); err != nil {
		t.Fatal(err)
	}
	if err := c.writeAdminKubeconfig(all); err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestModes(t *testing.T) {
	directory := t.TempDir()
	c := testConfig(t, directory, "--token", "secret", "--agent-token", "other", "--secrets-encryption")
	prepare(t, c)
	if _, err := c.ensureEncryption(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{
		"server": 0o700, "server/tls": 0o700, "server/cred": 0o700, "server/token": 0o600, "server/agent-token": 0o600,
		"server/cred/passwd": 0o600, "server/cred/admin.kubeconfig": 0o600, "server/cred/encryption-config.json": 0o600,
		"server/tls/server-ca.crt": 0o644, "server/tls/server-ca.key": 0o600, "server/tls/service.key": 0o600, "k3s.yaml": 0o600,
	} {
		info, err := os.Stat(filepath.Join(directory, name))
		if err != nil || info.Mode().Perm() != want {
			t.Error(name, info.Mode().Perm(), err)
		}
	}
}

func TestTokenFiles(t *testing.T) {
	directory := t.TempDir()
	c := testConfig(t, directory, "--token", "secret")
	all := prepare(t, c)
	want := "K10" + token.HashCA([]byte(read(t, c.data.TLS("server-ca.crt")))) + "::server:secret\n"
	for _, name := range []string{"token", "node-token", "agent-token"} {
		if got := read(t, c.data.Server(name)); got != want {
			t.Error(name, got)
		}
	}
	for _, name := range []string{"node-token", "agent-token"} {
		if _, err := os.Readlink(c.data.Server(name)); err != nil {
			t.Error("not a link:", name)
		}
	}
	c = testConfig(t, directory, "--token", "changed", "--agent-token", "agents")
	again := prepare(t, c)
	if string(again.server.PEM) != string(all.server.PEM) {
		t.Error("the CA changed")
	}
	if got := read(t, c.data.Server("token")); !strings.HasSuffix(got, "::server:changed\n") {
		t.Error("rewritten from the configuration at each start:", got)
	}
	if got := read(t, c.data.Server("agent-token")); !strings.HasSuffix(got, "::node:agents\n") {
		t.Error(got)
	}
	if got := read(t, c.data.Server("cred", "passwd")); got != "agents,node,node,k3s:agent\nchanged,server,server,k3s:server\n" {
		t.Error(got)
	}
}

func TestGeneratedTokenIsKept(t *testing.T) {
	directory := t.TempDir()
	prepare(t, testConfig(t, directory))
	first := read(t, filepath.Join(directory, "server/token"))
	prepare(t, testConfig(t, directory))
	if second := read(t, filepath.Join(directory, "server/token")); second != first {
		t.Error(first, second)
	}
}

func TestGivenTokenIsCheckedBeforeACAIsMade(t *testing.T) {
	directory := t.TempDir()
	ca := filepath.Join(directory, "ca.crt")
	secure := "K10" + strings.Repeat("0", 64) + "::server:secret"
	if err := checkGivenToken(secure, ca); err == nil {
		t.Error("a first server can only be given the short form")
	}
	if err := checkGivenToken("secret", ca); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(ca, []byte("ca"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkGivenToken(secure, ca); err == nil || !strings.Contains(err.Error(), "token CA hash does not match") {
		t.Error(err)
	}
}

func TestBadOptions(t *testing.T) {
	for want, arguments := range map[string][]string{
		"cluster-cidr":                          {"--cluster-cidr", "10.42.0.0"},
		"service-cidr":                          {"--service-cidr", "nonsense"},
		"cluster-dns":                           {"--cluster-dns", "nonsense"},
		"flannel-backend":                       {"--flannel-backend", "wireguard-native"},
		"advertise-address":                     {"--advertise-address", "nonsense"},
		"kubeconfig mode":                       {"--write-kubeconfig-mode", "rw"},
		"only https":                            {"--server", "http://10.0.0.2:6443"},
		"cluster-reset while server URL is set": {"--server", "https://10.0.0.2:6443", "--cluster-reset"},
		"token":                                 {"--token="},
	} {
		values, _, err := options.Parse(options.Server, append(arguments, "--data-dir", t.TempDir()), noEnv)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newConfig(values, "n", []string{"10.0.0.1"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(want, err)
		}
	}
}

// Agents enforce policies, a server says whether.
func TestNetworkPolicyIsLeftOutOnRequest(t *testing.T) {
	if testConfig(t, t.TempDir()).settings.DisableNetworkPolicy || !testConfig(t, t.TempDir(), "--disable-network-policy").settings.DisableNetworkPolicy {
		t.Error("option disable-network-policy does not reach the agents")
	}
}

func TestAddresses(t *testing.T) {
	c := testConfig(t, t.TempDir(), "--service-cidr", "10.99.0.0/16")
	if c.serviceIP != "10.99.0.1" || c.settings.ClusterDNS[0] != "10.99.0.10" {
		t.Error(c.serviceIP, c.settings.ClusterDNS)
	}
}

func TestServingNames(t *testing.T) {
	directory := t.TempDir()
	c := testConfig(t, directory, "--tls-san", "k3s.example,192.0.2.9")
	prepare(t, c)
	certificate, err := pki.ParseCertificate([]byte(read(t, c.data.TLS("serving-k3s.crt"))))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"k3s.example", "192.0.2.9", "127.0.0.1", "10.0.0.1", "10.43.0.1", "kubernetes.default.svc", "node-a", "localhost"} {
		if err := certificate.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestKubeconfigMode(t *testing.T) {
	directory := t.TempDir()
	prepare(t, testConfig(t, directory, "--write-kubeconfig-mode", "0640"))
	info, err := os.Stat(filepath.Join(directory, "k3s.yaml"))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Error(info, err)
	}
	if !strings.Contains(read(t, filepath.Join(directory, "k3s.yaml")), "server: https://127.0.0.1:6443\n") {
		t.Error("the kubeconfig is for this machine")
	}
}

func TestEncryptionKeyIsKept(t *testing.T) {
	directory := t.TempDir()
	c := testConfig(t, directory, "--secrets-encryption")
	prepare(t, c)
	name, err := c.ensureEncryption()
	if err != nil {
		t.Fatal(err)
	}
	first := read(t, name)
	var parsed map[string]any
	if err := json.Unmarshal([]byte(first), &parsed); err != nil || parsed["kind"] != "EncryptionConfiguration" {
		t.Error(parsed, err)
	}
	if _, err := c.ensureEncryption(); err != nil || read(t, name) != first {
		t.Error("the key changed", err)
	}
	plain := testConfig(t, t.TempDir())
	if name, err := plain.ensureEncryption(); name != "" || err != nil {
		t.Error(name, err)
	}
}
