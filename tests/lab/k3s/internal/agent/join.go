package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	requestTimeout = 10 * time.Second
	retryEvery     = 2 * time.Second
	answerLimit    = 1 << 20 // bytes
)

var errPasswordRejected = errors.New("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag")

// joiner talks to a supervisor with the token of the node.
type joiner struct {
	url    string // of the supervisor: the local load balancer, or the server's own port
	token  token.Token
	ca     []byte
	client *http.Client
	// certificate tells that the client shows a certificate, so that no token is sent.
	certificate bool
}

// withCertificate is a joiner that shows the node's certificate instead of the token.
func (j *joiner) withCertificate(certificate tls.Certificate) *joiner {
	roots, _ := pki.Pool(j.ca)
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{certificate}}
	return &joiner{url: j.url, ca: j.ca, client: httpClient(config), certificate: true}
}

// parseServerURL checks the address of a server. Errors: only https is allowed.
func parseServerURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("invalid server url %s: %w", text, err)
	}
	if parsed.Scheme != "https" || parsed.Host == "" {
		return nil, fmt.Errorf("only https:// URLs are supported, invalid scheme: %s", text)
	}
	return parsed, nil
}

// newJoiner fetches the cluster's CA and holds it against the hash in the token.
func newJoiner(ctx context.Context, address string, join token.Token) (*joiner, error) {
	// The CA comes over a connection that nobody has vouched for: the hash in the token does that afterwards.
	insecure := httpClient(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+cluster.PathCACerts, nil)
	if err != nil {
		return nil, err
	}
	ca, err := do(insecure, request)
	if err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	if err := join.CheckCA(ca); err != nil {
		return nil, err
	}
	roots, err := pki.Pool(ca)
	if err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	return &joiner{url: address, token: join, ca: ca, client: httpClient(config)}, nil
}

func httpClient(config *tls.Config) *http.Client {
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
}

// statusError is an answer other than 200.
type statusError struct {
	url    string
	code   int
	status string
	body   string
}

func (e statusError) Error() string { return fmt.Sprintf("%s: %s", e.url, e.status) }

func do(client *http.Client, request *http.Request) ([]byte, error) {
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, statusError{request.URL.String(), response.StatusCode, response.Status, strings.TrimSpace(string(body))}
	}
	return body, nil
}

func (j *joiner) request(ctx context.Context, method, path string, body []byte, headers map[string]string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, j.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	if j.certificate {
		return do(j.client, request)
	}
	if j.token.ID != "" {
		request.Header.Set("Authorization", "Bearer "+j.token.ID+"."+j.token.Password)
	} else {
		user := j.token.User
		if user == "" {
			user = cluster.UserNode
		}
		request.SetBasicAuth(user, j.token.Password)
	}
	return do(j.client, request)
}

// settings fetches the settings of the cluster once its core is up.
func (j *joiner) settings(ctx context.Context) (cluster.Settings, error) {
	var settings cluster.Settings
	body, err := j.request(ctx, http.MethodGet, cluster.PathSettings, nil, nil)
	if err != nil {
		return settings, fmt.Errorf("failed to retrieve configuration from server: %w", err)
	}
	if err := json.Unmarshal(body, &settings); err != nil {
		return settings, fmt.Errorf("failed to retrieve configuration from server: %w", err)
	}
	if _, err := j.request(ctx, http.MethodGet, cluster.PathReady, nil, nil); err != nil {
		return settings, err
	}
	return settings, nil
}

// apiServers asks for the addresses of all servers.
func (j *joiner) apiServers(ctx context.Context) ([]string, error) {
	body, err := j.request(ctx, http.MethodGet, cluster.PathAPIServers, nil, nil)
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
		content, err := j.request(ctx, http.MethodGet, path, nil, nil)
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
		certificate, err := j.request(ctx, http.MethodPost, path, request, identity)
		var status statusError
		if errors.As(err, &status) && status.code == http.StatusForbidden {
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
