package certificates

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
)

// newNode is a data directory with a few certificates of a server and its agent.
func newNode(t *testing.T) paths.Data {
	t.Helper()
	data := paths.Data(t.TempDir())
	for _, directory := range []string{data.TLS("etcd"), data.Agent()} {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := pki.EnsureCA("client-ca", data.TLS("client-ca.crt"), data.TLS("client-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{data.TLS("client-admin"), data.TLS("etcd", "client"), data.Agent("client-kubelet")} {
		leaf := pki.Leaf{Name: filepath.Base(name), Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if err := ca.Ensure(leaf, name+".crt", name+".key"); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

func TestCheck(t *testing.T) {
	data, now := newNode(t), time.Now()
	all, err := Check(data, nil, now)
	if err != nil || len(all) != 6 {
		t.Fatal("each file lists the certificate and its authority:", len(all), err)
	}
	for after, want := range map[time.Duration]string{
		0: OK, 240 * 24 * time.Hour: OK, 246 * 24 * time.Hour: Soon, 366 * 24 * time.Hour: Expired, -time.Hour: NotYetValid,
	} {
		found, err := Check(data, []string{"admin"}, now.Add(after))
		if err != nil || len(found) != 2 || found[0].Status != want {
			t.Error(after, found, err)
		}
	}
	line := all[0].Text()
	if !strings.HasPrefix(line, "client-admin.crt: certificate CN=client-admin (ClientAuth) is ok, expires at ") || !strings.HasSuffix(line, "Z") {
		t.Error(line)
	}
	if all[1].Usages[0] != "CertSign" || all[1].Status != OK {
		t.Error(all[1])
	}
	if _, err := Check(data, []string{"admin", "nonsense"}, now); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
}

func TestRotateRemovesLeavesAndKeepsAuthorities(t *testing.T) {
	data, now := newNode(t), time.Unix(1_700_000_000, 0)
	backups, err := Rotate(data, []string{"etcd", "kubelet"}, now)
	want := []string{data.Server("tls-1700000000"), data.Agent("tls-1700000000")}
	if err != nil || strings.Join(backups, " ") != strings.Join(want, " ") {
		t.Fatal(backups, err)
	}
	for file, there := range map[string]bool{
		data.TLS("client-admin.crt"): true, data.TLS("client-ca.crt"): true, data.TLS("client-ca.key"): true,
		data.TLS("etcd", "client.crt"): false, data.TLS("etcd", "client.key"): false, data.Agent("client-kubelet.key"): false,
		data.Server("tls-1700000000", "etcd", "client.key"): true, data.Agent("tls-1700000000", "client-kubelet.crt"): true,
	} {
		if exists(file) != there {
			t.Error(file, "is there:", !there)
		}
	}
	if info, err := os.Stat(data.Server("tls-1700000000", "client-ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if _, err := Rotate(paths.Data(t.TempDir()), nil, now); err == nil {
		t.Error("a machine without certificates")
	}
}
