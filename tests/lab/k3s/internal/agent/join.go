package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/token"
)

const retryEvery = 2 * time.Second

var errPasswordRejected = errors.New("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag")

// joiner asks a supervisor for what a node needs.
type joiner struct{ *cluster.Client }

// newJoiner fetches the cluster's CA and holds it against the hash in the token.
func newJoiner(ctx context.Context, address string, join token.Token) (*joiner, error) {
	client, err := cluster.Dial(ctx, address, join)
	if err != nil {
		return nil, err
	}
	return &joiner{client}, nil
}

// settings fetches the settings of the cluster once its core is up.
func (j *joiner) settings(ctx context.Context) (cluster.Settings, error) {
	var settings cluster.Settings
	body, err := j.Request(ctx, http.MethodGet, cluster.PathSettings, nil, nil)
	if err != nil {
		return settings, fmt.Errorf("failed to retrieve configuration from server: %w", err)
	}
	if err := json.Unmarshal(body, &settings); err != nil {
		return settings, fmt.Errorf("failed to retrieve configuration from server: %w", err)
	}
	if _, err := j.Request(ctx, http.MethodGet, cluster.PathReady, nil, nil); err != nil {
		return settings, err
	}
	return settings, nil
}

// apiServers asks for the addresses of all servers.
func (j *joiner) apiServers(ctx context.Context) ([]string, error) {
	body, err := j.Request(ctx, http.MethodGet, cluster.PathAPIServers, nil, nil)
	if err != nil {
		return nil, err
	}
	var addresses []string
	return addresses, json.Unmarshal(body, &addresses)
}

// credentials fetches the CAs and has the node's certificates signed; the keys never leave the node.
// Errors: errPasswordRejected, others.
func (j *joiner) credentials(ctx context.Context, data paths.Data, identity map[string]string) error {
	for file, path := range map[string]string{"client-ca.crt": cluster.PathClientCA, "server-ca.crt": cluster.PathServerCA} {
		content, err := j.Request(ctx, http.MethodGet, path, nil, nil)
		if err != nil {
			return err
		}
		if err := paths.WriteFile(data.Agent(file), content, 0o644); err != nil {
			return err
		}
	}
	for name, path := range map[string]string{
		"client-kubelet":        cluster.PathClientKubelet,
		"serving-kubelet":       cluster.PathServingKubelet,
		"client-kube-proxy":     cluster.PathClientKubeProxy,
		"client-k3s-controller": cluster.PathClientController,
	} {
		request, err := pki.Request(data.Agent(name + ".key"))
		if err != nil {
			return err
		}
		certificate, err := j.Request(ctx, http.MethodPost, path, request, identity)
		var status cluster.StatusError
		if errors.As(err, &status) && status.Code == http.StatusForbidden {
			return errPasswordRejected
		}
		if err != nil {
			return err
		}
		if err := paths.WriteFile(data.Agent(name+".crt"), certificate, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes the kubeconfig of a component that uses files of the agent's directory.
func writeKubeconfig(data paths.Data, name, server string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: local
  cluster: {server: %q, certificate-authority: %q}
users:
- name: user
  user: {client-certificate: %q, client-key: %q}
contexts:
- name: Default
  context: {cluster: local, namespace: default, user: user}
current-context: Default
`, server, data.Agent("server-ca.crt"), data.Agent("client-"+name+".crt"), data.Agent("client-"+name+".key"))
	return paths.WriteFile(data.Agent(strings.ReplaceAll(name, "-", "")+".kubeconfig"), []byte(text), 0o600)
}

// nodePassword reads the password of this machine, which is made at the first start and outlives the data directory.
func nodePassword(directory string) (string, error) {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return "", err
	}
	name := directory + "/password"
	content, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		password := token.Random(16)
		return password, paths.WriteFile(name, []byte(password+"\n"), 0o600)
	}
	return strings.TrimSpace(string(content)), err
}

// nodeID reads the number that option with-node-id appends to the node's name.
func nodeID(directory string) (string, error) {
	name := directory + "/id"
	content, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return "", err
		}
		id := token.Random(4)
		return id, paths.WriteFile(name, []byte(id+"\n"), 0o644)
	}
	return strings.TrimSpace(string(content)), err
}
