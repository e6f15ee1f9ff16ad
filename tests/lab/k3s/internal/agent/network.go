package agent

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"slipway/tests/lab/k3s/internal/paths"
)

// subnet is what flannel found out about the network of a node.
type subnet struct {
	CIDR string
	MTU  int
}

// readSubnet reads the file that flannel writes once its network is up.
func readSubnet(name string) (subnet, error) {
	file, err := os.Open(name)
	if err != nil {
		return subnet{}, err
	}
	defer file.Close()
	var found subnet
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		switch key {
		case "FLANNEL_SUBNET":
			_, network, err := net.ParseCIDR(value)
			if err != nil {
				return subnet{}, err
			}
			found.CIDR = network.String()
		case "FLANNEL_MTU":
			if found.MTU, err = strconv.Atoi(value); err != nil {
				return subnet{}, err
			}
		}
	}
	if found.CIDR == "" || found.MTU == 0 {
		return subnet{}, fmt.Errorf("%s is not complete", name)
	}
	return found, nil
}

// writeCNI writes the configuration of the pod network: a bridge on the node's own range. Flannel routes between the
// nodes and masquerades what leaves the cluster, so the bridge must not: pods have to see each other's addresses.
func writeCNI(data paths.Data, s subnet) error {
	content, err := json.MarshalIndent(map[string]any{
		"name": "cbr0", "cniVersion": "1.0.0",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "forceAddress": true, "hairpinMode": true,
				"ipMasq": false, "mtu": s.MTU,
				"ipam": map[string]any{"type": "host-local", "ranges": [][]map[string]string{{{"subnet": s.CIDR}}}},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(data.Agent("etc", "cni", "net.d"), "10-flannel.conflist"), append(content, '\n'), 0o600)
}

// writeFlannelConfig writes what flannel reads. Errors: unknown backend.
func writeFlannelConfig(data paths.Data, clusterCIDR, backend string) (string, error) {
	if backend != "vxlan" && backend != "host-gw" {
		return "", fmt.Errorf("flannel backend %q is not part of the stand-in", backend)
	}
	content, err := json.Marshal(map[string]any{
		"Network": clusterCIDR, "EnableIPv4": true, "EnableIPv6": false, "Backend": map[string]string{"Type": backend},
	})
	if err != nil {
		return "", err
	}
	name := data.Agent("etc", "flannel", "net-conf.json")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	return name, paths.WriteFile(name, content, 0o644)
}

// resolvConf returns a resolver configuration that pods can use: addresses of this machine mean nothing inside a pod.
// Without a usable one it writes its own, as k3s does.
func resolvConf(data paths.Data, candidates ...string) (string, error) {
	for _, name := range candidates {
		if usableResolvConf(name) {
			return name, nil
		}
	}
	name := data.Agent("etc", "resolv.conf")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	return name, paths.WriteFile(name, []byte("nameserver 8.8.8.8\n"), 0o644)
}

func usableResolvConf(name string) bool {
	content, err := os.ReadFile(name)
	if err != nil {
		return false
	}
	found := false
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip := net.ParseIP(fields[1])
		if ip == nil || !ip.IsGlobalUnicast() {
			return false
		}
		found = true
	}
	return found
}
