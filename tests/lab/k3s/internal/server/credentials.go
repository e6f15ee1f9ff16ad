package server

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	adminGroup      = "system:masters"
	frontProxyUser  = "system:auth-proxy"
	groupServer     = "k3s:server"
	groupAgent      = "k3s:agent"
	kubeconfigMode  = 0o600
	generatedSecret = 16 // bytes of a token that nobody chose
)

// authorities are the certificate authorities of a cluster.
type authorities struct {
	server, client, requestHeader, etcdServer, etcdPeer *pki.CA
}

// ensureAuthorities loads the authorities and makes those that are missing; those that users put there are kept.
func ensureAuthorities(data paths.Data) (*authorities, error) {
	for _, directory := range []string{data.Server(), data.TLS(), data.TLS("etcd"), data.Server("cred"), data.TLS("temporary-certs"), data.Server("etc")} {
		if err := paths.MkdirAll(directory, 0o700); err != nil {
			return nil, err
		}
	}
	var all authorities
	for _, item := range []struct {
		ca         **pki.CA
		name, file string
	}{
		{&all.server, "k3s-server-ca", "server-ca"},
		{&all.client, "k3s-client-ca", "client-ca"},
		{&all.requestHeader, "k3s-request-header-ca", "request-header-ca"},
		{&all.etcdServer, "etcd-server-ca", "etcd/server-ca"},
		{&all.etcdPeer, "etcd-peer-ca", "etcd/peer-ca"},
	} {
		ca, err := pki.EnsureCA(item.name, data.TLS(item.file+".crt"), data.TLS(item.file+".key"))
		if err != nil {
			return nil, err
		}
		*item.ca = ca
	}
	return &all, pki.EnsureServiceKey(data.TLS("service.key"))
}

// ensureCertificates issues the certificates and kubeconfigs of the server's own components.
func (c *config) ensureCertificates(all *authorities) error {
	client, serving := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	both := append(client, serving...)
	etcdHosts := []string{"localhost", "127.0.0.1", "::1", c.node, c.ip}
	for _, item := range []struct {
		ca         *pki.CA
		file       string
		leaf       pki.Leaf
		kubeconfig string
	}{
		{all.client, "client-admin", pki.Leaf{Name: "system:admin", Groups: []string{adminGroup}, Usages: client}, "admin"},
		{all.client, "client-supervisor", pki.Leaf{Name: "system:k3s-supervisor", Groups: []string{adminGroup}, Usages: client}, "supervisor"},
		{all.client, "client-controller", pki.Leaf{Name: "system:kube-controller-manager", Usages: client}, "controller"},
		{all.client, "client-scheduler", pki.Leaf{Name: "system:kube-scheduler", Usages: client}, "scheduler"},
		{all.client, "client-kube-apiserver", pki.Leaf{Name: "kube-apiserver", Usages: client}, ""},
		{all.requestHeader, "client-auth-proxy", pki.Leaf{Name: frontProxyUser, Usages: client}, ""},
		{all.server, "serving-kube-apiserver", pki.Leaf{Name: "kube-apiserver", Hosts: c.apiServerHosts(), Usages: serving}, ""},
		{all.server, "serving-k3s", pki.Leaf{Name: "k3s", Groups: []string{"k3s"}, Hosts: c.servingHosts(), Usages: serving}, ""},
		{all.etcdServer, "etcd/client", pki.Leaf{Name: "etcd-client", Usages: client}, ""},
		{all.etcdServer, "etcd/server-client", pki.Leaf{Name: "etcd-server", Hosts: etcdHosts, Usages: both}, ""},
		{all.etcdPeer, "etcd/peer-server-client", pki.Leaf{Name: "etcd-peer", Hosts: etcdHosts, Usages: both}, ""},
	} {
		if err := item.ca.Ensure(item.leaf, c.data.TLS(item.file+".crt"), c.data.TLS(item.file+".key")); err != nil {
			return fmt.Errorf("certificate %s: %w", item.file, err)
		}
		if item.kubeconfig != "" {
			if err := c.writeComponentKubeconfig(item.kubeconfig, item.file); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeComponentKubeconfig writes a kubeconfig that goes to the kube-apiserver itself.
func (c *config) writeComponentKubeconfig(name, certificate string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: local
  cluster: {server: "https://127.0.0.1:%d", certificate-authority: %q}
users:
- name: user
  user: {client-certificate: %q, client-key: %q}
contexts:
- name: Default
  context: {cluster: local, namespace: default, user: user}
current-context: Default
`, apiServerPort, c.data.TLS("server-ca.crt"), c.data.TLS(certificate+".crt"), c.data.TLS(certificate+".key"))
	return paths.WriteFile(c.data.Server("cred", name+".kubeconfig"), []byte(text), kubeconfigMode)
}

// writeAdminKubeconfig writes k3s.yaml, the kubeconfig for administrators on this machine.
func (c *config) writeAdminKubeconfig(all *authorities) error {
	certificate, err := os.ReadFile(c.data.TLS("client-admin.crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(c.data.TLS("client-admin.key"))
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: https://127.0.0.1:%d
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: %s
    client-key-data: %s
`, base64.StdEncoding.EncodeToString(all.server.PEM), c.port, base64.StdEncoding.EncodeToString(certificate), base64.StdEncoding.EncodeToString(key))
	mode := os.FileMode(kubeconfigMode)
	if given := c.values.String("write-kubeconfig-mode"); given != "" {
		parsed, err := strconv.ParseUint(given, 8, 32)
		if err != nil {
			return err
		}
		mode = os.FileMode(parsed)
	}
	name := c.kubeconfigPath()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := paths.WriteFile(name, []byte(text), mode); err != nil {
		return err
	}
	if group := c.values.String("write-kubeconfig-group"); group != "" {
		if err := changeGroup(name, group); err != nil {
			return err
		}
	}
	logrus.Infof("Wrote kubeconfig %s", name)
	return nil
}

func changeGroup(name, group string) error {
	gid, err := strconv.Atoi(group)
	if err != nil {
		found, err := user.LookupGroup(group)
		if err != nil {
			return err
		}
		if gid, err = strconv.Atoi(found.Gid); err != nil {
			return err
		}
	}
	return os.Chown(name, -1, gid)
}

// checkGivenToken holds a token in the secure form against the cluster's CA, before one is made: a first server can
// only be given the short form, because its CA is not known before.
func checkGivenToken(given, caFile string) error {
	if given == "" {
		return nil
	}
	parsed, err := token.Parse(given)
	if err != nil {
		return fmt.Errorf("failed to normalize token: %w", err)
	}
	if parsed.Hash == "" {
		return nil
	}
	ca, err := os.ReadFile(caFile)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("failed to normalize token: a token with a CA hash cannot be used before the cluster CA exists; use the short form")
	}
	if err != nil {
		return err
	}
	return parsed.CheckCA(ca)
}

// ensurePasswords finds the passwords of the users "server" and "node": from the options, else those of the last
// start, else new ones. They are kept in cred/passwd (password,user,uid,groups).
func (c *config) ensurePasswords() (map[string]string, error) {
	name := c.data.Server("cred", "passwd")
	known, err := readPasswords(name)
	if err != nil {
		return nil, err
	}
	server := password(c.token)
	if server == "" {
		server = known[cluster.UserServer]
	}
	if server == "" {
		server = token.Random(generatedSecret)
	}
	node := password(c.agentToken)
	if node == "" {
		node = server
	}
	passwords := map[string]string{cluster.UserServer: server, cluster.UserNode: node}
	return passwords, c.writePasswords(passwords)
}

func (c *config) writePasswords(passwords map[string]string) error {
	var text strings.Builder
	writer := csv.NewWriter(&text)
	writer.WriteAll([][]string{
		{passwords[cluster.UserNode], cluster.UserNode, cluster.UserNode, groupAgent},
		{passwords[cluster.UserServer], cluster.UserServer, cluster.UserServer, groupServer},
	})
	name := c.data.Server("cred", "passwd")
	// An unchanged file keeps its time: by that servers tell which of two differing ones is newer.
	if content, err := os.ReadFile(name); err == nil && string(content) == text.String() {
		return nil
	}
	return paths.WriteFile(name, []byte(text.String()), 0o600)
}

// password is the secret part of a token that was checked before.
func password(given string) string {
	parsed, err := token.Parse(given)
	if err != nil {
		return given
	}
	if parsed.ID != "" {
		return parsed.ID + "." + parsed.Password
	}
	return parsed.Password
}

func readPasswords(name string) (map[string]string, error) {
	file, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	known := map[string]string{}
	for _, row := range rows {
		if len(row) > 1 {
			known[row[1]] = row[0]
		}
	}
	return known, nil
}

// writeTokens writes the token files in the secure form, as at each start of k3s.
func (c *config) writeTokens(ca []byte, passwords map[string]string) error {
	hash := token.HashCA(ca)
	secure := func(user string) []byte {
		return []byte(token.Token{Hash: hash, User: user, Password: passwords[user]}.Secure() + "\n")
	}
	if err := paths.WriteFile(c.data.Server("token"), secure(cluster.UserServer), 0o600); err != nil {
		return err
	}
	if err := link(c.data.Server("token"), c.data.Server("node-token")); err != nil {
		return err
	}
	logrus.Infof("Server node token is available at %s", c.data.Server("token"))
	if c.agentToken == "" && passwords[cluster.UserNode] == passwords[cluster.UserServer] {
		return link(c.data.Server("token"), c.data.Server("agent-token"))
	}
	if err := paths.WriteFile(c.data.Server("agent-token"), secure(cluster.UserNode), 0o600); err != nil {
		return err
	}
	logrus.Infof("Agent node token is available at %s", c.data.Server("agent-token"))
	return nil
}

// link makes a symbolic link in place of whatever has its name.
func link(target, name string) error {
	if current, err := os.Readlink(name); err == nil && current == target {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, name)
}
