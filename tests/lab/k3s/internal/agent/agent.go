// Package agent runs the node side of k3s: containerd, kubelet, kube-proxy, the pod network and its policies.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/containerd"
	"slipway/tests/lab/k3s/internal/images"
	"slipway/tests/lab/k3s/internal/loadbalancer"
	"slipway/tests/lab/k3s/internal/netpol"
	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/payload"
	"slipway/tests/lab/k3s/internal/process"
	"slipway/tests/lab/k3s/internal/token"
)

const learnServersEvery = 15 * time.Second

// Config is what an agent is started with.
type Config struct {
	Values *options.Values
	Group  *process.Group
	Images map[string]string // references of the packaged images
	// LocalServer is the address of the supervisor in the same process; empty on a node that is agent only.
	LocalServer string
	Token       string
	Node        string
	IPs         []string
	// Ready is called once the node is part of the cluster.
	Ready func()
}

type agent struct {
	Config
	data   paths.Data
	bin    string
	node   string
	ips    []string
	values *options.Values
	group  *process.Group
}

// Identity finds the name and addresses of this node. Errors: no host name, no default route, bad addresses.
func Identity(values *options.Values) (node string, ips []string, err error) {
	node = values.String("node-name")
	if node == "" {
		if node, err = os.Hostname(); err != nil {
			return "", nil, err
		}
	}
	node = strings.ToLower(node)
	if values.Bool("with-node-id") {
		id, err := nodeID(paths.NodeDir)
		if err != nil {
			return "", nil, err
		}
		node += "-" + id
	}
	if err := parseTaints(values.SplitList("node-taint")); err != nil {
		return "", nil, err
	}
	ips = values.SplitList("node-ip")
	for _, ip := range ips {
		if net.ParseIP(ip) == nil {
			return "", nil, fmt.Errorf("invalid node-ip: %s", ip)
		}
	}
	if len(ips) == 0 {
		ip, err := utilnet.ChooseHostInterface()
		if err != nil {
			return "", nil, err
		}
		ips = []string{ip.String()}
	}
	return node, ips, nil
}

// Check validates what an agent-only node must be given. Errors as k3s words them.
func Check(values *options.Values) (joinToken string, err error) {
	joinToken = values.String("token")
	if file := values.String("token-file"); file != "" && joinToken == "" {
		if joinToken, err = token.FromFile(file); err != nil {
			return "", err
		}
	}
	if joinToken == "" {
		return "", errors.New("--token is required")
	}
	if values.String("server") == "" {
		return "", errors.New("--server is required")
	}
	return joinToken, nil
}

// Run joins the cluster and starts the components of the node. It returns when they run; errors end the node.
func Run(ctx context.Context, config Config) error {
	data := paths.Data(config.Values.String("data-dir"))
	bin, err := filepath.EvalSymlinks(data.Bin())
	if err != nil {
		return err
	}
	a := &agent{config, data, bin, config.Node, config.IPs, config.Values, config.Group}
	if err := paths.MkdirAll(data.Agent(), 0o700); err != nil {
		return err
	}
	settings, err := a.prepare(ctx)
	if err != nil {
		return err
	}
	if err := a.writeKubeletConfig(settings); err != nil {
		return err
	}
	if err := a.startKubelet(); err != nil {
		return err
	}
	if !settings.DisableKubeProxy {
		if err := a.startKubeProxy(settings); err != nil {
			return err
		}
	}
	client, err := a.controllerClient()
	if err != nil {
		return err
	}
	if err := a.waitForNode(ctx, client); err != nil {
		return err
	}
	if err := a.describeNode(ctx, client); err != nil {
		return err
	}
	if !settings.DisableNetworkPolicy {
		if err := netpol.Start(ctx, client, a.node); err != nil {
			return err
		}
	}
	if settings.FlannelBackend != "none" {
		if err := a.startNetwork(ctx, settings); err != nil {
			return err
		}
	}
	if config.Ready != nil {
		config.Ready()
	}
	return nil
}

// prepare joins the cluster and starts the container runtime: in this order on an agent, which must not touch the
// machine before a server has accepted it. Beside a server of the same process the two need not wait for each other.
func (a *agent) prepare(ctx context.Context) (settings cluster.Settings, err error) {
	if a.LocalServer == "" {
		if settings, err = a.join(ctx, ctx); err != nil {
			return settings, err
		}
		return settings, a.startRuntime(ctx, ctx)
	}
	parallel, parallelCtx := errgroup.WithContext(ctx)
	parallel.Go(func() error { return a.startRuntime(parallelCtx, ctx) })
	parallel.Go(func() (err error) {
		settings, err = a.join(parallelCtx, ctx)
		return err
	})
	return settings, parallel.Wait()
}

// startRuntime starts containerd and imports the images; the import of later changes goes on until the process ends.
func (a *agent) startRuntime(ctx, lifetime context.Context) error {
	pause := a.values.String("pause-image")
	if pause == "" {
		pause = a.Images[payload.Pause]
	}
	config := containerd.Config{
		Data: a.data, Bin: a.bin, PauseImage: pause, Snapshotter: a.values.String("snapshotter"),
		DefaultRuntime: a.values.String("default-runtime"), Registries: a.values.String("private-registry"),
	}
	if err := containerd.Write(config); err != nil {
		return err
	}
	if err := containerd.Start(ctx, a.group, config); err != nil {
		return err
	}
	ctr := func(ctx context.Context, input io.Reader, arguments ...string) (string, error) {
		return containerd.CTR(ctx, a.bin, input, arguments...)
	}
	importer, err := images.New(a.data.Agent("images"), ctr)
	if err != nil {
		return err
	}
	if err := importer.Start(ctx); err != nil {
		return err
	}
	go importer.Watch(lifetime)
	return nil
}

// join gets settings and credentials from a server, trying again until it works: an agent may be up before its server.
func (a *agent) join(ctx, lifetime context.Context) (cluster.Settings, error) {
	server, shown := a.LocalServer, a.LocalServer
	var balancer *loadbalancer.Balancer
	if server == "" {
		configured, err := cluster.ParseServerURL(a.values.String("server"))
		if err != nil {
			return cluster.Settings{}, err
		}
		host := configured.Host
		if configured.Port() == "" {
			host = net.JoinHostPort(configured.Hostname(), "443")
		}
		file := a.data.Agent("etc", "k3s-agent-load-balancer.json")
		if balancer, err = loadbalancer.Start(a.values.Int("lb-server-port"), configured.String(), host, file); err != nil {
			return cluster.Settings{}, err
		}
		server, shown = balancer.URL(), configured.String()
	}
	parsed, err := token.Parse(a.Token)
	if err != nil {
		return cluster.Settings{}, err
	}
	if parsed.Hash == "" {
		logrus.Warn("Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a CA hash. Use the full token from the server's node-token file to enable Cluster CA validation.")
	}
	password, err := nodePassword(paths.NodeDir)
	if err != nil {
		return cluster.Settings{}, err
	}
	identity := map[string]string{
		cluster.HeaderNodeName: a.node, cluster.HeaderNodePassword: password, cluster.HeaderNodeIP: strings.Join(a.ips, ","),
	}
	var settings cluster.Settings
	var j *joiner
	err = process.Poll(ctx, a.retryInterval(), func(ctx context.Context) error {
		if j, err = newJoiner(ctx, server, parsed); err != nil {
			a.complain(ctx, "Failed to validate connection to cluster at %s: %v", shown, err)
			return err
		}
		if settings, err = j.settings(ctx); err != nil {
			a.complain(ctx, "Waiting to retrieve agent configuration; server is not ready: %v", err)
			return err
		}
		if err = j.credentials(ctx, a.data, identity); err != nil {
			a.complain(ctx, "Waiting to retrieve agent configuration; server is not ready: %v", err)
		}
		return err
	})
	if err != nil {
		return settings, err
	}
	for _, component := range []string{"kubelet", "kube-proxy", "k3s-controller"} {
		if err := writeKubeconfig(a.data, component, server); err != nil {
			return settings, err
		}
	}
	if balancer != nil {
		go a.learnServers(lifetime, balancer, j)
	}
	return settings, nil
}

// retryInterval is short beside a server of the same process, which is about to come up.
func (a *agent) retryInterval() time.Duration {
	if a.LocalServer != "" {
		return 200 * time.Millisecond
	}
	return retryEvery
}

// complain logs a failed attempt; beside a server of the same process that is no news while the server starts.
func (a *agent) complain(ctx context.Context, format string, arguments ...any) {
	var status cluster.StatusError
	err, _ := arguments[len(arguments)-1].(error)
	if ctx.Err() != nil || a.LocalServer != "" && (errors.As(err, &status) && status.Code >= 500 || isDial(err)) {
		return
	}
	logrus.Errorf(format, arguments...)
}

func isDial(err error) bool {
	var operation *net.OpError
	return errors.As(err, &operation)
}

// learnServers keeps the load balancer's list of servers up to date, as the node itself: the token may change meanwhile.
func (a *agent) learnServers(ctx context.Context, balancer *loadbalancer.Balancer, j *joiner) {
	certificate, err := tls.LoadX509KeyPair(a.data.Agent("client-kubelet.crt"), a.data.Agent("client-kubelet.key"))
	if err != nil {
		logrus.Errorf("Failed to load node certificate: %v", err)
		return
	}
	learner := &joiner{j.WithCertificate(certificate)}
	for {
		if addresses, err := learner.apiServers(ctx); err != nil {
			logrus.Debugf("Failed to learn servers: %v", err)
		} else if err := balancer.Set(addresses); err != nil {
			logrus.Errorf("Failed to save servers: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(learnServersEvery):
		}
	}
}

// startNetwork starts flannel and gives the container runtime its network once flannel's is up.
func (a *agent) startNetwork(ctx context.Context, settings cluster.Settings) error {
	config, err := writeFlannelConfig(a.data, settings.ClusterCIDR[0], settings.FlannelBackend)
	if err != nil {
		return err
	}
	// A file of an earlier start may speak of another backend, with another MTU.
	if err := os.Remove(paths.FlannelSubnet); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	networkInterface := a.values.String("flannel-iface")
	if networkInterface == "" {
		networkInterface = a.ips[0]
	}
	err = a.start("flannel", []string{
		"--kubeconfig=" + a.data.Agent("k3scontroller.kubeconfig"), "--net-conf=" + config,
		"--iface=" + networkInterface, "--subnet-file=" + paths.FlannelSubnet,
	})
	if err != nil {
		return err
	}
	var found subnet
	err = process.Poll(ctx, 100*time.Millisecond, func(context.Context) (err error) {
		found, err = readSubnet(paths.FlannelSubnet)
		return err
	})
	if err != nil {
		return err
	}
	return writeCNI(a.data, found)
}
