package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v2"

	"slipway/tests/lab/k3s/internal/args"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/process"
	"slipway/tests/lab/k3s/internal/token"
)

// Stages of the stop: etcd after the kube-apiserver, which writes to it.
const (
	stageControllers = 1
	stageAPIServer   = 3
	stageEtcd        = 4
)

const (
	controllerGrace = 2 * time.Second
	// kube-apiserver would wait up to a minute for open watches.
	apiServerGrace = 2 * time.Second
	etcdGrace      = 5 * time.Second

	etcdAddress       = "127.0.0.1:2379"
	etcdURL           = "https://" + etcdAddress
	readyPollInterval = 200 * time.Millisecond
)

// startEtcd writes the configuration of the single member and starts it.
func (c *config) startEtcd(group *process.Group) error {
	directory := c.data.Server("db", "etcd")
	if err := paths.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	name, err := c.memberName()
	if err != nil {
		return err
	}
	peerURL, clientURL := fmt.Sprintf("https://%s:2380", c.ip), fmt.Sprintf("https://%s:2379", c.ip)
	metrics := "http://127.0.0.1:2381"
	if c.values.Bool("etcd-expose-metrics") {
		metrics += fmt.Sprintf(",http://%s:2381", c.ip)
	}
	settings := map[string]any{
		"name": name, "data-dir": directory,
		"listen-client-urls": etcdURL + "," + clientURL, "advertise-client-urls": clientURL,
		"listen-peer-urls": "https://127.0.0.1:2380," + peerURL, "initial-advertise-peer-urls": peerURL,
		"listen-metrics-urls": metrics, "initial-cluster": name + "=" + peerURL, "initial-cluster-state": "new",
		"logger": "zap", "log-outputs": []string{"stderr"},
		"client-transport-security": c.etcdTLS("server-client", "server-ca"),
		"peer-transport-security":   c.etcdTLS("peer-server-client", "peer-ca"),
	}
	for _, flag := range c.values.List("etcd-arg") {
		key, value, found := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if !found {
			return fmt.Errorf("invalid etcd-arg %q: want name=value", flag)
		}
		var parsed any
		if err := yaml.Unmarshal([]byte(value), &parsed); err != nil {
			return fmt.Errorf("invalid etcd-arg %q: %w", flag, err)
		}
		settings[key] = parsed
	}
	content, err := yaml.Marshal(settings)
	if err != nil {
		return err
	}
	file := directory + "/config"
	if err := paths.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	return group.Start(process.Child{Name: "etcd", Args: []string{"--config-file=" + file}, Stage: stageEtcd, Grace: etcdGrace})
}

func (c *config) etcdTLS(certificate, ca string) map[string]any {
	return map[string]any{
		"cert-file": c.data.TLS("etcd", certificate+".crt"), "key-file": c.data.TLS("etcd", certificate+".key"),
		"client-cert-auth": true, "trusted-ca-file": c.data.TLS("etcd", ca+".crt"),
	}
}

// memberName is the name of this etcd member, <node>-<8 hex>, made once.
func (c *config) memberName() (string, error) {
	file := c.data.Server("db", "etcd", "name")
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		name := c.node + "-" + token.Random(4)
		return name, paths.WriteFile(file, []byte(name), 0o600)
	}
	return strings.TrimSpace(string(content)), err
}

func (c *config) startAPIServer(group *process.Group, encryption string) error {
	tlsFile := func(name string) string { return c.data.TLS(name) }
	issuer := "https://kubernetes.default.svc." + c.settings.ClusterDomain
	flags := map[string]string{
		"advertise-address":                  c.advertise,
		"allow-privileged":                   "true",
		"anonymous-auth":                     "false",
		"api-audiences":                      issuer + ",k3s",
		"authorization-mode":                 "Node,RBAC",
		"bind-address":                       "127.0.0.1",
		"cert-dir":                           tlsFile("temporary-certs"),
		"client-ca-file":                     tlsFile("client-ca.crt"),
		"enable-admission-plugins":           "NodeRestriction",
		"enable-bootstrap-token-auth":        "true",
		"endpoint-reconciler-type":           "none", // the supervisor's own port is what clients have to use
		"etcd-cafile":                        tlsFile("etcd/server-ca.crt"),
		"etcd-certfile":                      tlsFile("etcd/client.crt"),
		"etcd-keyfile":                       tlsFile("etcd/client.key"),
		"etcd-servers":                       etcdURL,
		"kubelet-certificate-authority":      tlsFile("server-ca.crt"),
		"kubelet-client-certificate":         tlsFile("client-kube-apiserver.crt"),
		"kubelet-client-key":                 tlsFile("client-kube-apiserver.key"),
		"kubelet-preferred-address-types":    "InternalIP,ExternalIP,Hostname",
		"profiling":                          "false",
		"proxy-client-cert-file":             tlsFile("client-auth-proxy.crt"),
		"proxy-client-key-file":              tlsFile("client-auth-proxy.key"),
		"requestheader-allowed-names":        frontProxyUser,
		"requestheader-client-ca-file":       tlsFile("request-header-ca.crt"),
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-username-headers":     "X-Remote-User",
		"secure-port":                        strconv.Itoa(apiServerPort),
		"service-account-issuer":             issuer,
		"service-account-key-file":           tlsFile("service.key"),
		"service-account-signing-key-file":   tlsFile("service.key"),
		"service-cluster-ip-range":           join(c.settings.ServiceCIDR),
		"service-node-port-range":            c.values.String("service-node-port-range"),
		"storage-backend":                    "etcd3",
		"tls-cert-file":                      tlsFile("serving-kube-apiserver.crt"),
		"tls-private-key-file":               tlsFile("serving-kube-apiserver.key"),
	}
	if encryption != "" {
		flags["encryption-provider-config"] = encryption
	}
	return c.start(group, "kube-apiserver", flags, "kube-apiserver-arg", stageAPIServer, apiServerGrace)
}

func (c *config) startControllerManager(group *process.Group) error {
	kubeconfig := c.data.Server("cred", "controller.kubeconfig")
	clientCA, clientKey := c.data.TLS("client-ca.crt"), c.data.TLS("client-ca.key")
	return c.start(group, "kube-controller-manager", map[string]string{
		"allocate-node-cidrs":       "true",
		"authentication-kubeconfig": kubeconfig,
		"authorization-kubeconfig":  kubeconfig,
		"bind-address":              "127.0.0.1",
		"cluster-cidr":              join(c.settings.ClusterCIDR),
		"cluster-signing-kube-apiserver-client-cert-file": clientCA,
		"cluster-signing-kube-apiserver-client-key-file":  clientKey,
		"cluster-signing-kubelet-client-cert-file":        clientCA,
		"cluster-signing-kubelet-client-key-file":         clientKey,
		"cluster-signing-kubelet-serving-cert-file":       c.data.TLS("server-ca.crt"),
		"cluster-signing-kubelet-serving-key-file":        c.data.TLS("server-ca.key"),
		"cluster-signing-legacy-unknown-cert-file":        clientCA,
		"cluster-signing-legacy-unknown-key-file":         clientKey,
		"controllers":                      "*,tokencleaner",
		"flex-volume-plugin-dir":           c.data.Agent("libexec", "kubernetes", "kubelet-plugins", "volume", "exec"),
		"kubeconfig":                       kubeconfig,
		"leader-elect":                     "false", // one server: an election would only delay each restart
		"profiling":                        "false",
		"root-ca-file":                     c.data.TLS("server-ca.crt"),
		"service-account-private-key-file": c.data.TLS("service.key"),
		"service-cluster-ip-range":         join(c.settings.ServiceCIDR),
		"use-service-account-credentials":  "true",
	}, "kube-controller-manager-arg", stageControllers, controllerGrace)
}

func (c *config) startScheduler(group *process.Group) error {
	kubeconfig := c.data.Server("cred", "scheduler.kubeconfig")
	return c.start(group, "kube-scheduler", map[string]string{
		"authentication-kubeconfig": kubeconfig,
		"authorization-kubeconfig":  kubeconfig,
		"bind-address":              "127.0.0.1",
		"kubeconfig":                kubeconfig,
		"leader-elect":              "false",
		"profiling":                 "false",
	}, "kube-scheduler-arg", stageControllers, controllerGrace)
}

// start starts a component with k3s' flags and those of an option.
func (c *config) start(group *process.Group, name string, flags map[string]string, option string, stage int, grace time.Duration) error {
	merged := args.Merge(flags, c.values.List(option))
	logrus.Infof("Running %s %s", name, strings.Join(merged, " "))
	return group.Start(process.Child{Name: name, Args: merged, Stage: stage, Grace: grace})
}

// waitForAPIServer waits until the kube-apiserver says that it is ready.
func (c *config) waitForAPIServer(ctx context.Context, serverCA *pki.CA) error {
	client, err := c.adminHTTP(serverCA)
	if err != nil {
		return err
	}
	url := fmt.Sprintf("https://127.0.0.1:%d/readyz", apiServerPort)
	return process.Poll(ctx, readyPollInterval, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
			return fmt.Errorf("kube-apiserver: %s: %s", response.Status, body)
		}
		return nil
	})
}

// adminHTTP is a client with the supervisor's certificate.
func (c *config) adminHTTP(serverCA *pki.CA) (*http.Client, error) {
	certificate, err := tls.LoadX509KeyPair(c.data.TLS("client-supervisor.crt"), c.data.TLS("client-supervisor.key"))
	if err != nil {
		return nil, err
	}
	roots, err := pki.Pool(serverCA.PEM)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{certificate}}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}, nil
}
