package agent

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v2"

	"slipway/tests/lab/k3s/internal/args"
	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/containerd"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/process"
)

const stopGrace = 3 * time.Second

// writeKubeletConfig writes k3s' defaults as the first file of the kubelet's drop-in directory.
func (a *agent) writeKubeletConfig(settings cluster.Settings) error {
	resolver := a.values.String("resolv-conf")
	if resolver == "" {
		var err error
		if resolver, err = resolvConf(a.data, "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"); err != nil {
			return err
		}
	}
	endpoint := "unix://" + paths.ContainerdSocket
	content, err := yaml.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true, "cacheTTL": "2m0s"},
			"x509":      map[string]any{"clientCAFile": a.data.Agent("client-ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook", "webhook": map[string]any{"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}},
		"cgroupDriver":             cgroupDriver(),
		"clusterDNS":               settings.ClusterDNS,
		"clusterDomain":            settings.ClusterDomain,
		"containerRuntimeEndpoint": endpoint,
		"imageServiceEndpoint":     endpoint,
		"evictionHard":             map[string]string{"imagefs.available": "5%", "nodefs.available": "5%"},
		"evictionMinimumReclaim":   map[string]string{"imagefs.available": "10%", "nodefs.available": "10%"},
		"failSwapOn":               false,
		"healthzBindAddress":       "127.0.0.1",
		"protectKernelDefaults":    a.values.Bool("protect-kernel-defaults"),
		"providerID":               "k3s://" + a.node,
		"resolvConf":               resolver,
		"serializeImagePulls":      false,
		"staticPodPath":            a.data.Agent("pod-manifests"),
		"tlsCertFile":              a.data.Agent("serving-kubelet.crt"),
		"tlsPrivateKeyFile":        a.data.Agent("serving-kubelet.key"),
		"volumePluginDir":          a.data.Agent("libexec", "kubernetes", "kubelet-plugins", "volume", "exec"),
	})
	if err != nil {
		return err
	}
	for _, directory := range []string{a.kubeletConfigDir(), a.data.Agent("pod-manifests")} {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return err
		}
	}
	return paths.WriteFile(filepath.Join(a.kubeletConfigDir(), "00-k3s-defaults.conf"), content, 0o600)
}

func (a *agent) kubeletConfigDir() string { return a.data.Agent("etc", "kubelet.conf.d") }

// cgroupDriver is systemd only where systemd manages one unified hierarchy, as k3s decides.
func cgroupDriver() string {
	_, unified := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	_, managed := os.LookupEnv("INVOCATION_ID")
	if _, err := os.Stat("/run/systemd/system"); unified == nil && managed && err == nil {
		return "systemd"
	}
	return "cgroupfs"
}

func (a *agent) startKubelet() error {
	flags := map[string]string{
		"config-dir":        a.kubeletConfigDir(),
		"hostname-override": a.node,
		"kubeconfig":        a.data.Agent("kubelet.kubeconfig"),
		"node-ip":           strings.Join(a.ips, ","),
		"node-labels":       strings.Join(a.values.SplitList("node-label"), ","),
		"read-only-port":    "0",
	}
	if taints := a.values.SplitList("node-taint"); len(taints) > 0 {
		flags["register-with-taints"] = strings.Join(taints, ",")
	}
	return a.start("kubelet", args.Merge(flags, a.values.List("kubelet-arg")))
}

func (a *agent) startKubeProxy(settings cluster.Settings) error {
	flags := map[string]string{
		"cluster-cidr":                      strings.Join(settings.ClusterCIDR, ","),
		"conntrack-max-per-core":            "0",
		"conntrack-tcp-timeout-close-wait":  "0s",
		"conntrack-tcp-timeout-established": "0s",
		"healthz-bind-address":              "127.0.0.1",
		"hostname-override":                 a.node,
		"kubeconfig":                        a.data.Agent("kubeproxy.kubeconfig"),
		"proxy-mode":                        "iptables",
	}
	return a.start("kube-proxy", args.Merge(flags, a.values.List("kube-proxy-arg")))
}

// start starts a component that is part of this binary.
func (a *agent) start(name string, flags []string) error {
	return a.group.Start(process.Child{
		Name: name, Args: flags, Env: []string{"PATH=" + containerd.Path(a.bin), "NODE_NAME=" + a.node}, Stage: 1, Grace: stopGrace,
	})
}
