package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/snapshots"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	defaultClusterCIDR = "10.42.0.0/16"
	defaultServiceCIDR = "10.43.0.0/16"
	apiServerPort      = 6444
	dnsOffset          = 10 // the DNS service has the tenth address of the service range
)

// config is what the options of a server amount to.
type config struct {
	values        *options.Values
	data          paths.Data
	node          string
	ip            string
	advertise     string
	advertisePort int
	port          int
	bind          string
	serviceIP     string // first address of the service range: the API server's own service
	token         string
	agentToken    string
	settings      cluster.Settings
	ports         etcdPorts
	taker         *snapshots.Taker
	// remote is the server that this one joins; nil unless it does.
	remote *cluster.Client
	// elect tells that the controllers share their work with those of other servers.
	elect atomic.Bool
}

// newConfig validates the options of a server. Errors name the option.
func newConfig(values *options.Values, node string, ips []string) (*config, error) {
	c := &config{
		values: values, data: paths.Data(values.String("data-dir")), node: node, ip: ips[0], port: values.Int("https-listen-port"),
		ports: defaultPorts,
	}
	if values.String("cluster-reset-restore-path") != "" && !values.Bool("cluster-reset") {
		return nil, errors.New("invalid flag use; --cluster-reset required with --cluster-reset-restore-path")
	}
	var err error
	if c.token, err = secret(values, "token"); err != nil {
		return nil, err
	}
	if address := values.String("server"); address != "" {
		if values.Bool("cluster-reset") {
			return nil, errors.New("cannot perform cluster-reset while server URL is set - remove server from configuration before resetting")
		}
		if _, err := cluster.ParseServerURL(address); err != nil {
			return nil, err
		}
	}
	if c.agentToken, err = secret(values, "agent-token"); err != nil {
		return nil, err
	}
	c.advertise, c.advertisePort = values.String("advertise-address"), values.Int("advertise-port")
	if c.advertise == "" {
		c.advertise = c.ip
	}
	if net.ParseIP(c.advertise) == nil {
		return nil, fmt.Errorf("invalid advertise-address: %s", c.advertise)
	}
	if c.advertisePort == 0 {
		c.advertisePort = c.port
	}
	c.bind = values.String("bind-address")
	c.settings = cluster.Settings{
		ClusterCIDR:          orDefault(values.SplitList("cluster-cidr"), defaultClusterCIDR),
		ServiceCIDR:          orDefault(values.SplitList("service-cidr"), defaultServiceCIDR),
		ClusterDNS:           values.SplitList("cluster-dns"),
		ClusterDomain:        values.String("cluster-domain"),
		FlannelBackend:       values.String("flannel-backend"),
		DisableKubeProxy:     values.Bool("disable-kube-proxy"),
		DisableNetworkPolicy: values.Bool("disable-network-policy"),
	}
	for option, ranges := range map[string][]string{"cluster-cidr": c.settings.ClusterCIDR, "service-cidr": c.settings.ServiceCIDR} {
		for _, text := range ranges {
			if ip, _, err := net.ParseCIDR(text); err != nil {
				return nil, fmt.Errorf("invalid %s %s: %w", option, text, err)
			} else if ip.To4() == nil {
				return nil, fmt.Errorf("IPv6 (option %q) is not part of the stand-in yet", option)
			}
		}
	}
	_, services, _ := net.ParseCIDR(c.settings.ServiceCIDR[0])
	c.serviceIP = address(services, 1)
	if len(c.settings.ClusterDNS) == 0 {
		c.settings.ClusterDNS = []string{address(services, dnsOffset)}
	}
	for _, dns := range c.settings.ClusterDNS {
		if net.ParseIP(dns) == nil {
			return nil, fmt.Errorf("invalid cluster-dns address: %s", dns)
		}
	}
	if !slices.Contains([]string{"none", "vxlan", "host-gw"}, c.settings.FlannelBackend) {
		return nil, fmt.Errorf("flannel-backend %q is not part of the stand-in (vxlan, host-gw, none)", c.settings.FlannelBackend)
	}
	if provider := values.String("secrets-encryption-provider"); provider != "aescbc" && provider != "secretbox" {
		return nil, fmt.Errorf("invalid secrets-encryption-provider %q", provider)
	}
	if mode := values.String("write-kubeconfig-mode"); mode != "" {
		if _, err := strconv.ParseUint(mode, 8, 32); err != nil {
			return nil, fmt.Errorf("failed to parse kubeconfig mode %q: %w", mode, err)
		}
	}
	c.settings.Critical = c.critical()
	return c, nil
}

// initialized tells whether this server already has a datastore; cluster-init and server are ignored then.
func (c *config) initialized() bool {
	_, err := os.Stat(c.data.Server("db", "etcd", "member", "wal"))
	return err == nil
}

// secret reads a token from its option or from the file that option <name>-file names.
func secret(values *options.Values, name string) (string, error) {
	text := values.String(name)
	if file := values.String(name + "-file"); file != "" && text == "" {
		return token.FromFile(file)
	}
	if text == "" && values.IsSet(name) {
		return "", fmt.Errorf("option %q must not be empty", name)
	}
	return text, nil
}

func orDefault(given []string, value string) []string {
	if len(given) == 0 {
		return []string{value}
	}
	return given
}

// address is the n-th address of an IPv4 network.
func address(network *net.IPNet, n int) string {
	ip := slices.Clone(network.IP.To4())
	for i := len(ip) - 1; i >= 0 && n > 0; i-- {
		n += int(ip[i])
		ip[i] = byte(n)
		n >>= 8
	}
	return ip.String()
}

// disabled tells whether option disable names a packaged component.
func (c *config) disabled(component string) bool {
	return slices.Contains(c.values.SplitList("disable"), component)
}

// kubeconfigPath is where the kubeconfig for administrators goes.
func (c *config) kubeconfigPath() string {
	if name := c.values.String("write-kubeconfig"); name != "" {
		return name
	}
	return paths.Kubeconfig
}

// localStorage is the directory of the volumes of StorageClass local-path.
func (c *config) localStorage() string {
	if name := c.values.String("default-local-storage-path"); name != "" {
		return name
	}
	return c.data.Path("storage")
}

// servingHosts are the names and addresses in the certificate of the server's port.
func (c *config) servingHosts() []string {
	hosts := append(c.apiServerHosts(), c.node)
	for _, san := range c.values.SplitList("tls-san") {
		if !slices.Contains(hosts, san) {
			hosts = append(hosts, san)
		}
	}
	return hosts
}

func (c *config) apiServerHosts() []string {
	hosts := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.settings.ClusterDomain,
		"localhost", "127.0.0.1", "::1", c.serviceIP, c.ip,
	}
	if c.advertise != c.ip {
		hosts = append(hosts, c.advertise)
	}
	return hosts
}

func join(values []string) string { return strings.Join(values, ",") }
