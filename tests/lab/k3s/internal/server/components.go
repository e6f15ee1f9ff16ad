package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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

	readyPollInterval = 200 * time.Millisecond
)

// etcdStart is how a member starts.
type etcdStart struct {
	cluster  string // to join, as etcd wants it; empty: a cluster of its own, or the one of its data
	forceNew bool   // the member forgets all others
}

// startEtcd writes the configuration of this server's member and starts it.
func (c *config) startEtcd(group *process.Group, start etcdStart) error {
	directory := c.etcdDirectory()
	if err := paths.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	name, err := c.memberName()
	if err != nil {
		return err
	}
	peerURL, clientURL := c.peerURL(), fmt.Sprintf("https://%s:%d", c.ip, c.ports.client)
	metrics := fmt.Sprintf("http://127.0.0.1:%d", c.ports.metrics)
	if c.values.Bool("etcd-expose-metrics") {
		metrics += fmt.Sprintf(",http://%s:%d", c.ip, c.ports.metrics)
	}
	cluster, state := name+"="+peerURL, "new"
	if start.cluster != "" {
		cluster, state = start.cluster, "existing"
	}
	settings := map[string]any{
		"name": name, "data-dir": directory,
		"listen-client-urls": urls(c.etcdURL(), clientURL), "advertise-client-urls": clientURL,
		"listen-peer-urls": urls(fmt.Sprintf("https://127.0.0.1:%d", c.ports.peer), peerURL), "initial-advertise-peer-urls": peerURL,
		"listen-metrics-urls": metrics, "initial-cluster": cluster, "initial-cluster-state": state,
		"force-new-cluster": start.forceNew,
		"logger":            "zap", "log-outputs": []string{"stderr"},
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
	return group.Start(process.Child{
		Name: "etcd", Args: []string{"--config-file=" + file}, Stage: stageEtcd, Grace: etcdGrace, Exited: c.markRemoved,
	})
}

// urls joins addresses to listen on, each once.
func urls(all ...string) string {
	return join(slices.Compact(all))
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
		name := c.newMemberName()
		return name, c.writeMemberName(name)
	}
	return strings.TrimSpace(string(content)), err
}

func (c *config) newMemberName() string { return c.node + "-" + token.Random(4) }

func (c *config) writeMemberName(name string) error {
	if err := paths.MkdirAll(c.etcdDirectory(), 0o700); err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(c.etcdDirectory(), "name"), []byte(name), 0o600)
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
		"etcd-servers":                       c.etcdURL(),
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
		"leader-elect":                     strconv.FormatBool(c.elect.Load()),
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
		"leader-elect":              strconv.FormatBool(c.elect.Load()),
		"profiling":                 "false",
	}, "kube-scheduler-arg", stageControllers, controllerGrace)
}

// startControllers starts what works on the objects of the cluster. A server that is alone does without an election,
// which would only delay each restart.
func (c *config) startControllers(group *process.Group) error {
	if err := c.startControllerManager(group); err != nil || c.values.Bool("disable-scheduler") {
		return err
	}
	return c.startScheduler(group)
}

// shareControllers makes the controllers of a server that was alone take part in elections, before another server's
// controllers start.
func (c *config) shareControllers(group *process.Group) error {
	if c.elect.Swap(true) {
		return nil
	}
	logrus.Info("Another server joins: restarting kube-controller-manager and kube-scheduler with leader election")
	group.End("kube-controller-manager")
	group.End("kube-scheduler")
	return c.startControllers(group)
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
