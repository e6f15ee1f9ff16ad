// Package cluster holds what servers and agents say to each other over the supervisor's port.
package cluster

// Paths of the supervisor (k3s pkg/server/handlers/router.go).
const (
	PathPing             = "/ping"
	PathCACerts          = "/cacerts"
	PathReady            = "/v1-k3s/readyz"
	PathSettings         = "/v1-k3s/config"
	PathAPIServers       = "/v1-k3s/apiservers"
	PathClientCA         = "/v1-k3s/client-ca.crt"
	PathServerCA         = "/v1-k3s/server-ca.crt"
	PathClientKubelet    = "/v1-k3s/client-kubelet.crt"
	PathServingKubelet   = "/v1-k3s/serving-kubelet.crt"
	PathClientKubeProxy  = "/v1-k3s/client-kube-proxy.crt"
	PathClientController = "/v1-k3s/client-k3s-controller.crt"
)

// Paths that only servers and their administrators may use.
const (
	PathBootstrap  = "/v1-k3s/server-bootstrap"
	PathToken      = "/v1-k3s/token"
	PathDBInfo     = "/db/info"
	PathDBSnapshot = "/db/snapshot"

	PathEncrypt       = "/v1-k3s/encrypt/config"
	PathEncryptStatus = "/v1-k3s/encrypt/status"
)

// Headers by which a node names itself when it asks for certificates.
const (
	HeaderNodeName     = "K3s-Node-Name"
	HeaderNodePassword = "K3s-Node-Password"
	HeaderNodeIP       = "K3s-Node-Ip"
)

// Users of the supervisor's basic authentication; they stand in tokens too.
const (
	UserServer = "server"
	UserNode   = "node"
)

// ControllerUser is the identity of the agents' own network and label code; rolebindings.yaml gives it its rights.
const ControllerUser = "system:k3s-controller"

// Settings are the cluster-wide options that agents learn from the servers.
type Settings struct {
	ClusterCIDR          []string
	ServiceCIDR          []string
	ClusterDNS           []string
	ClusterDomain        string
	FlannelBackend       string
	DisableKubeProxy     bool
	DisableNetworkPolicy bool
	// Critical are the options that must be equal on all servers, by name; servers that join compare them.
	Critical map[string]string `json:",omitempty"`
}
