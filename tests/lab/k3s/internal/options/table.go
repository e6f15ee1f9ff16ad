package options

// Kind is the type of an option's value.
type Kind int

// Kinds of values.
const (
	String Kind = iota
	Bool
	Int
	List
	Duration
)

// support tells what the stand-in makes of an option.
type support int

const (
	works   support = iota // does what k3s does
	inert                  // accepted; nothing in the stand-in could be affected by it (README)
	missing                // not part of the stand-in: a value other than the default ends the start
)

// option describes one option as k3s documents it (docs cli/server, cli/agent).
type option struct {
	name    string
	short   string
	kind    Kind
	env     string
	value   string // default
	support support
}

// common are the options of servers and agents.
var common = []option{
	{name: "config", short: "c", env: "K3S_CONFIG_FILE", value: "/etc/rancher/k3s/config.yaml"},
	{name: "debug", kind: Bool, env: "K3S_DEBUG"},
	{name: "v", kind: Int, value: "0"},
	{name: "vmodule", support: missing},
	{name: "log", short: "l", support: missing},
	{name: "alsologtostderr", kind: Bool, support: inert},
	{name: "data-dir", short: "d", env: "K3S_DATA_DIR", value: "/var/lib/rancher/k3s"},
	{name: "token", short: "t", env: "K3S_TOKEN"},
	{name: "token-file", env: "K3S_TOKEN_FILE"},
	{name: "server", short: "s", env: "K3S_URL"},
	{name: "node-name", env: "K3S_NODE_NAME"},
	{name: "with-node-id", kind: Bool},
	{name: "node-label", kind: List},
	{name: "node-taint", kind: List},
	{name: "node-ip", short: "i", kind: List},
	{name: "node-external-ip", kind: List, support: missing},
	{name: "node-internal-dns", kind: List, support: missing},
	{name: "node-external-dns", kind: List, support: missing},
	{name: "resolv-conf", env: "K3S_RESOLV_CONF"},
	{name: "flannel-iface"},
	{name: "flannel-conf", support: missing},
	{name: "flannel-cni-conf", support: missing},
	{name: "kubelet-arg", kind: List},
	{name: "kube-proxy-arg", kind: List},
	{name: "protect-kernel-defaults", kind: Bool},
	{name: "selinux", kind: Bool, env: "K3S_SELINUX", support: missing},
	{name: "lb-server-port", kind: Int, env: "K3S_LB_SERVER_PORT", value: "6444"},
	{name: "private-registry", value: "/etc/rancher/k3s/registries.yaml"},
	{name: "default-runtime"},
	{name: "disable-default-registry-endpoint", kind: Bool, support: missing},
	{name: "nonroot-devices", kind: Bool, support: missing},
	{name: "pause-image"},
	{name: "snapshotter", value: "overlayfs"},
	{name: "container-runtime-endpoint", support: missing},
	{name: "docker", kind: Bool, support: missing},
	{name: "image-credential-provider-bin-dir", value: "/var/lib/rancher/credentialprovider/bin", support: missing},
	{name: "image-credential-provider-config", value: "/var/lib/rancher/credentialprovider/config.yaml", support: missing},
	{name: "prefer-bundled-bin", kind: Bool, support: inert},
	{name: "vpn-auth", env: "K3S_VPN_AUTH", support: missing},
	{name: "vpn-auth-file", env: "K3S_VPN_AUTH_FILE", support: missing},
	{name: "rootless", kind: Bool, support: missing},
	{name: "airgap-extra-registry", kind: List, support: missing},
}

// agentOnly are the options that only agents have.
var agentOnly = []option{
	{name: "disable-apiserver-lb", kind: Bool, support: missing},
}

// serverOnly are the options that only servers have.
var serverOnly = []option{
	{name: "bind-address"},
	{name: "https-listen-port", kind: Int, value: "6443"},
	{name: "advertise-address"},
	{name: "advertise-port", kind: Int, value: "0"},
	{name: "tls-san", kind: List},
	{name: "tls-san-security", kind: Bool, value: "true", support: inert},
	{name: "cluster-cidr", kind: List},
	{name: "service-cidr", kind: List},
	{name: "service-node-port-range", value: "30000-32767"},
	{name: "cluster-dns", kind: List},
	{name: "cluster-domain", value: "cluster.local"},
	{name: "flannel-backend", value: "vxlan"},
	{name: "flannel-ipv6-masq", kind: Bool, support: missing},
	{name: "flannel-external-ip", kind: Bool, support: missing},
	{name: "egress-selector-mode", value: "agent", support: inert},
	{name: "servicelb-namespace", value: "kube-system", support: inert},
	{name: "write-kubeconfig", short: "o", env: "K3S_KUBECONFIG_OUTPUT"},
	{name: "write-kubeconfig-mode", env: "K3S_KUBECONFIG_MODE"},
	{name: "write-kubeconfig-group", env: "K3S_KUBECONFIG_GROUP"},
	{name: "helm-job-image", support: inert},
	{name: "agent-token", env: "K3S_AGENT_TOKEN"},
	{name: "agent-token-file", env: "K3S_AGENT_TOKEN_FILE"},
	{name: "cluster-init", kind: Bool, env: "K3S_CLUSTER_INIT"},
	{name: "cluster-reset", kind: Bool, env: "K3S_CLUSTER_RESET"},
	{name: "cluster-reset-restore-path"},
	{name: "datastore-endpoint", env: "K3S_DATASTORE_ENDPOINT", support: missing},
	{name: "datastore-cafile", env: "K3S_DATASTORE_CAFILE", support: missing},
	{name: "datastore-certfile", env: "K3S_DATASTORE_CERTFILE", support: missing},
	{name: "datastore-keyfile", env: "K3S_DATASTORE_KEYFILE", support: missing},
	{name: "etcd-expose-metrics", kind: Bool},
	{name: "etcd-disable-snapshots", kind: Bool},
	{name: "etcd-snapshot-name", value: "etcd-snapshot"},
	{name: "etcd-snapshot-schedule-cron", value: "0 */12 * * *"},
	{name: "etcd-snapshot-retention", kind: Int, value: "5"},
	{name: "etcd-snapshot-dir"},
	{name: "etcd-snapshot-compress", kind: Bool},
	{name: "etcd-snapshot-reconcile-interval", kind: Duration, value: "10m", support: inert},
	{name: "etcd-s3", kind: Bool, support: missing},
	{name: "etcd-s3-endpoint", value: "s3.amazonaws.com", support: missing},
	{name: "etcd-s3-endpoint-ca", support: missing},
	{name: "etcd-s3-skip-ssl-verify", kind: Bool, support: missing},
	{name: "etcd-s3-access-key", env: "AWS_ACCESS_KEY_ID", support: missing},
	{name: "etcd-s3-secret-key", env: "AWS_SECRET_ACCESS_KEY", support: missing},
	{name: "etcd-s3-session-token", env: "AWS_SESSION_TOKEN", support: missing},
	{name: "etcd-s3-bucket", support: missing},
	{name: "etcd-s3-bucket-lookup-type", value: "auto", support: missing},
	{name: "etcd-s3-region", value: "us-east-1", support: missing},
	{name: "etcd-s3-folder", support: missing},
	{name: "etcd-s3-retention", kind: Int, value: "5", support: missing},
	{name: "etcd-s3-proxy", support: missing},
	{name: "etcd-s3-insecure", kind: Bool, support: missing},
	{name: "etcd-s3-timeout", kind: Duration, value: "5m0s", support: missing},
	{name: "etcd-s3-config-secret", support: missing},
	{name: "etcd-arg", kind: List},
	{name: "kube-apiserver-arg", kind: List},
	{name: "kube-controller-manager-arg", kind: List},
	{name: "kube-scheduler-arg", kind: List},
	{name: "kube-cloud-controller-manager-arg", kind: List, support: missing},
	{name: "helm-controller-arg", kind: List, support: missing},
	{name: "secrets-encryption", kind: Bool},
	{name: "secrets-encryption-provider", value: "aescbc"},
	{name: "default-local-storage-path"},
	{name: "disable", kind: List},
	{name: "disable-scheduler", kind: Bool},
	{name: "disable-cloud-controller", kind: Bool, support: inert},
	{name: "disable-kube-proxy", kind: Bool},
	{name: "disable-network-policy", kind: Bool},
	{name: "disable-helm-controller", kind: Bool, support: inert},
	{name: "disable-apiserver", kind: Bool, support: missing},
	{name: "disable-controller-manager", kind: Bool, support: missing},
	{name: "disable-etcd", kind: Bool, support: missing},
	{name: "disable-agent", kind: Bool},
	{name: "embedded-registry", kind: Bool, support: missing},
	{name: "supervisor-metrics", kind: Bool, support: missing},
	{name: "enable-pprof", kind: Bool, support: missing},
	{name: "system-default-registry", env: "K3S_SYSTEM_DEFAULT_REGISTRY", support: missing},
	{name: "kine-tls", kind: Bool, support: missing},
}
