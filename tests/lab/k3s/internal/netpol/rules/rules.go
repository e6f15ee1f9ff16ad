// Package rules works out what NetworkPolicies (networking.k8s.io/v1) allow the pods of a node, and writes it as rules
// for iptables-restore. It touches nothing: the same input gives the same text.
package rules

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Allow is one kind of connection that a policy allows.
type Allow struct {
	Peer     netip.Prefix
	Protocol corev1.Protocol // empty: any
	// First and Last are the port, or the range of ports, of whoever is called; zero: any.
	First, Last uint16
}

// Side is what may come into a pod, or go out of it.
type Side struct {
	// Isolated is true when at least one policy is about this side: then nothing is allowed that Allowed does not name.
	Isolated bool
	Allowed  []Allow
}

// Pod is a pod of this node with what its policies amount to.
type Pod struct {
	Name    string // namespace/name
	Address netip.Addr
	Ingress Side
	Egress  Side
}

// Input is the state of the cluster.
type Input struct {
	Node       string
	Policies   []*networkingv1.NetworkPolicy
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
}

var everywhere = netip.MustParsePrefix("0.0.0.0/0")

// Build returns the pods of the node that at least one policy selects, in the order of their names.
func Build(input Input) []Pod {
	c := newCluster(input)
	var found []Pod
	for _, candidate := range c.members {
		if candidate.node != input.Node {
			continue
		}
		pod := Pod{Name: candidate.namespace + "/" + candidate.name, Address: candidate.address}
		for _, policy := range input.Policies {
			if policy.Namespace != candidate.namespace || !selects(&policy.Spec.PodSelector, candidate.labels) {
				continue
			}
			ingress, egress := sides(policy)
			if ingress {
				pod.Ingress.Isolated = true
				for _, rule := range policy.Spec.Ingress {
					pod.Ingress.Allowed = append(pod.Ingress.Allowed, c.ingress(policy.Namespace, rule, candidate)...)
				}
			}
			if egress {
				pod.Egress.Isolated = true
				for _, rule := range policy.Spec.Egress {
					pod.Egress.Allowed = append(pod.Egress.Allowed, c.egress(policy.Namespace, rule)...)
				}
			}
		}
		pod.Ingress.Allowed, pod.Egress.Allowed = simplify(pod.Ingress.Allowed), simplify(pod.Egress.Allowed)
		if pod.Ingress.Isolated || pod.Egress.Isolated {
			found = append(found, pod)
		}
	}
	slices.SortFunc(found, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	return found
}

// sides tells which sides a policy is about. The API server fills policyTypes in; what it would fill in is known here too.
func sides(policy *networkingv1.NetworkPolicy) (ingress, egress bool) {
	if len(policy.Spec.PolicyTypes) == 0 {
		return true, len(policy.Spec.Egress) > 0
	}
	return slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeIngress),
		slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
}

// selects is false for a selector that is not valid, which the API server lets nobody write.
func selects(selector *metav1.LabelSelector, set labels.Set) bool {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(set)
}

// member is a pod that has an address of its own on the pod network.
type member struct {
	namespace, name, node string
	labels                labels.Set
	address               netip.Addr
	ports                 map[namedPort]uint16
}

type namedPort struct {
	name     string
	protocol corev1.Protocol
}

type cluster struct {
	namespaces map[string]labels.Set
	members    []member
}

func newCluster(input Input) cluster {
	c := cluster{namespaces: map[string]labels.Set{}}
	for _, namespace := range input.Namespaces {
		c.namespaces[namespace.Name] = namespace.Labels
	}
	for _, pod := range input.Pods {
		address, found := address(pod)
		// A pod on the network of its node is the node to policies. The address of one that has ended may be another's.
		if !found || pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		c.members = append(c.members, member{
			namespace: pod.Namespace, name: pod.Name, node: pod.Spec.NodeName,
			labels: pod.Labels, address: address, ports: namedPorts(pod),
		})
	}
	return c
}

// address is the first IPv4 address of a pod.
func address(pod *corev1.Pod) (netip.Addr, bool) {
	for _, candidate := range append([]corev1.PodIP{{IP: pod.Status.PodIP}}, pod.Status.PodIPs...) {
		if parsed, err := netip.ParseAddr(candidate.IP); err == nil && parsed.Is4() {
			return parsed, true
		}
	}
	return netip.Addr{}, false
}

func namedPorts(pod *corev1.Pod) map[namedPort]uint16 {
	found := map[namedPort]uint16{}
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, port := range container.Ports {
			if port.Name != "" {
				found[namedPort{port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP)}] = uint16(port.ContainerPort)
			}
		}
	}
	return found
}

// ingress is what a rule lets into a pod; names of ports are those of the pod.
func (c cluster) ingress(namespace string, rule networkingv1.NetworkPolicyIngressRule, target member) []Allow {
	var allowed []Allow
	peers := c.prefixes(namespace, rule.From)
	for _, port := range orAny(rule.Ports) {
		if port.Port != nil && port.Port.Type == intstr.String {
			number, found := target.ports[named(port)]
			if !found {
				continue
			}
			port = numbered(port, number)
		}
		allowed = append(allowed, allow(peers, port)...)
	}
	return allowed
}

// egress is what a rule lets out; names of ports are those of each pod that is called.
func (c cluster) egress(namespace string, rule networkingv1.NetworkPolicyEgressRule) []Allow {
	var allowed []Allow
	peers := c.prefixes(namespace, rule.To)
	for _, port := range orAny(rule.Ports) {
		if port.Port == nil || port.Port.Type == intstr.Int {
			allowed = append(allowed, allow(peers, port)...)
			continue
		}
		for _, called := range c.members {
			number, found := called.ports[named(port)]
			if found && slices.ContainsFunc(peers, func(p netip.Prefix) bool { return p.Contains(called.address) }) {
				allowed = append(allowed, allow([]netip.Prefix{host(called.address)}, numbered(port, number))...)
			}
		}
	}
	return allowed
}

// orAny makes "no ports" one port of any protocol and number.
func orAny(ports []networkingv1.NetworkPolicyPort) []networkingv1.NetworkPolicyPort {
	if len(ports) > 0 {
		return ports
	}
	anything := corev1.Protocol("")
	return []networkingv1.NetworkPolicyPort{{Protocol: &anything}}
}

func named(port networkingv1.NetworkPolicyPort) namedPort {
	return namedPort{port.Port.StrVal, protocol(port)}
}

func numbered(port networkingv1.NetworkPolicyPort, number uint16) networkingv1.NetworkPolicyPort {
	value := intstr.FromInt32(int32(number))
	return networkingv1.NetworkPolicyPort{Protocol: port.Protocol, Port: &value}
}

func protocol(port networkingv1.NetworkPolicyPort) corev1.Protocol {
	if port.Protocol == nil {
		return corev1.ProtocolTCP
	}
	return *port.Protocol
}

func allow(peers []netip.Prefix, port networkingv1.NetworkPolicyPort) []Allow {
	var first, last uint16
	if port.Port != nil {
		first = uint16(port.Port.IntVal)
		last = first
		if port.EndPort != nil {
			last = uint16(*port.EndPort)
		}
	}
	var allowed []Allow
	for _, peer := range peers {
		allowed = append(allowed, Allow{Peer: peer, Protocol: protocol(port), First: first, Last: last})
	}
	return allowed
}

// prefixes are the addresses of all peers; without peers, everything.
func (c cluster) prefixes(namespace string, peers []networkingv1.NetworkPolicyPeer) []netip.Prefix {
	if len(peers) == 0 {
		return []netip.Prefix{everywhere}
	}
	var found []netip.Prefix
	for _, peer := range peers {
		if peer.IPBlock != nil {
			found = append(found, block(peer.IPBlock)...)
			continue
		}
		for _, candidate := range c.members {
			if c.isPeer(namespace, peer, candidate) {
				found = append(found, host(candidate.address))
			}
		}
	}
	return found
}

// isPeer tells whether the selectors of a peer choose a pod.
func (c cluster) isPeer(namespace string, peer networkingv1.NetworkPolicyPeer, candidate member) bool {
	switch {
	case peer.NamespaceSelector != nil:
		set, known := c.namespaces[candidate.namespace]
		if !known || !selects(peer.NamespaceSelector, set) {
			return false
		}
	case peer.PodSelector == nil || candidate.namespace != namespace:
		return false
	}
	return peer.PodSelector == nil || selects(peer.PodSelector, candidate.labels)
}

// simplify sorts, and drops what is there twice or covered by "everything".
func simplify(allowed []Allow) []Allow {
	everything := Allow{Peer: everywhere}
	if slices.Contains(allowed, everything) {
		return []Allow{everything}
	}
	slices.SortFunc(allowed, func(a, b Allow) int {
		return cmp.Or(
			a.Peer.Addr().Compare(b.Peer.Addr()), cmp.Compare(a.Peer.Bits(), b.Peer.Bits()),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last),
		)
	})
	return slices.Compact(allowed)
}
