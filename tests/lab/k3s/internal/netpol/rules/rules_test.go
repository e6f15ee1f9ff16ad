package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// The cluster of upstream's suite (test/e2e/network/netpol): pods a, b and c in the namespaces x, y and z, which all
// serve 80 and 81 over every protocol by ports with names. Here they are spread over two nodes.
var (
	namespaceNames = []string{"x", "y", "z"}
	podNames       = []string{"a", "b", "c"}
	protocols      = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	nodeOf         = map[string]string{"a": "node-1", "b": "node-2", "c": "node-1"}
)

func world() Input {
	var input Input
	for i, namespace := range namespaceNames {
		input.Namespaces = append(input.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: namespace, Labels: map[string]string{"ns": namespace, corev1.LabelMetadataName: namespace},
		}})
		for j, name := range podNames {
			var ports []corev1.ContainerPort
			for _, protocol := range protocols {
				for _, number := range []int32{80, 81} {
					ports = append(ports, corev1.ContainerPort{
						Name: fmt.Sprintf("serve-%d-%s", number, strings.ToLower(string(protocol))), ContainerPort: number, Protocol: protocol,
					})
				}
			}
			input.Pods = append(input.Pods, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"pod": name}},
				Spec:       corev1.PodSpec{NodeName: nodeOf[name], Containers: []corev1.Container{{Ports: ports}}},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.42.%d.%d", i, 10+j)},
			})
		}
	}
	return input
}

// add adds policies, each as a YAML mapping of its namespace to its spec. "y" is quoted: to YAML 1.1 it is a boolean.
func add(t *testing.T, input *Input, policies ...string) {
	t.Helper()
	for i, text := range policies {
		var specs map[string]networkingv1.NetworkPolicySpec
		if err := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096).Decode(&specs); err != nil {
			t.Fatal(text, err)
		}
		for namespace, spec := range specs {
			input.Policies = append(input.Policies, &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("policy-%d", i)}, Spec: spec,
			})
		}
	}
}

// probe is a connection that somebody tries.
type probe struct {
	from, to string // namespace/pod
	protocol corev1.Protocol
	port     uint16
}

func (p probe) fromNamespace() string { return p.from[:1] }
func (p probe) toNamespace() string   { return p.to[:1] }

func permits(side Side, peer netip.Addr, p probe) bool {
	return !side.Isolated || slices.ContainsFunc(side.Allowed, func(a Allow) bool {
		return a.Peer.Contains(peer) && (a.Protocol == "" || a.Protocol == p.protocol) &&
			(a.First == 0 || a.First <= p.port && p.port <= a.Last)
	})
}

// reacher tells what happens to probes when each node enforces its own rules.
func reacher(input Input) func(probe) bool {
	addresses, pods := map[string]netip.Addr{}, map[string]Pod{}
	for _, pod := range input.Pods {
		addresses[pod.Namespace+"/"+pod.Name] = netip.MustParseAddr(pod.Status.PodIP)
	}
	for _, node := range []string{"node-1", "node-2"} {
		input.Node = node
		for _, pod := range Build(input) {
			pods[pod.Name] = pod
		}
	}
	return func(p probe) bool {
		return permits(pods[p.from].Egress, addresses[p.to], p) && permits(pods[p.to].Ingress, addresses[p.from], p)
	}
}

// The cases of upstream's suite, and some beyond them.
func TestReachability(t *testing.T) {
	to := func(names ...string) func(probe) bool {
		return func(p probe) bool { return slices.Contains(names, p.to) }
	}
	tcp := func(p probe, port uint16) bool { return p.protocol == corev1.ProtocolTCP && p.port == port }
	for _, test := range []struct {
		name     string
		policies []string
		denied   func(probe) bool
	}{
		{"no policy", nil, func(probe) bool { return false }},
		{"default deny ingress", []string{`x: {podSelector: {}, policyTypes: [Ingress]}`},
			func(p probe) bool { return p.toNamespace() == "x" }},
		{"types default to ingress", []string{`x: {podSelector: {}}`},
			func(p probe) bool { return p.toNamespace() == "x" }},
		{"types default to both with egress rules", []string{`x: {podSelector: {}, egress: [{}]}`},
			func(p probe) bool { return p.toNamespace() == "x" }},
		{"default deny all", []string{`x: {podSelector: {}, policyTypes: [Ingress, Egress]}`},
			func(p probe) bool { return p.toNamespace() == "x" || p.fromNamespace() == "x" }},
		{"from a pod of the server's namespace", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.from != "x/b" }},
		{"to a target although the rest is denied", []string{`x: {podSelector: {}}`,
			`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]}`}, to("x/b", "x/c")},
		{"from all namespaces", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}`},
			func(probe) bool { return false }},
		{"from another namespace", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.fromNamespace() != "y" }},
		{"podSelector with expressions", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.from != "x/b" }},
		{"namespaceSelector with expressions", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: ["y"]}]}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.fromNamespace() != "y" }},
		{"podSelector or namespaceSelector", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [
			{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}, {podSelector: {matchLabels: {pod: b}}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.from == "x/c" }},
		{"podSelector and namespaceSelector", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [
			{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchLabels: {pod: b}}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.from != "y/b" && p.from != "z/b" }},
		{"several podSelectors and namespaceSelectors", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [
			{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]}]}`},
			func(p probe) bool {
				return p.to == "x/a" && !slices.Contains([]string{"y/b", "y/c", "z/b", "z/c"}, p.from)
			}},
		{"any of two podSelectors", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.from != "x/b" && p.from != "x/c" }},
		{"by ports", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: 81, protocol: TCP}]}]}`},
			func(p probe) bool { return p.to == "x/a" && !(p.fromNamespace() == "y" && tcp(p, 81)) }},
		{"stacked policies", []string{
			`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: 81}]}]}`,
			`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: 80}]}]}`},
			func(p probe) bool {
				return p.to == "x/a" && !(p.fromNamespace() == "y" && p.protocol == corev1.ProtocolTCP)
			}},
		{"allow all ingress", []string{`x: {podSelector: {}, ingress: [{}]}`}, func(probe) bool { return false }},
		{"ingress to a named port", []string{`x: {podSelector: {}, ingress: [{ports: [{port: serve-81-tcp}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" && !tcp(p, 81) }},
		{"a named port of another protocol", []string{`x: {podSelector: {}, ingress: [{ports: [{port: serve-81-tcp, protocol: UDP}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" }},
		{"a port name that no pod has", []string{`x: {podSelector: {}, ingress: [{ports: [{port: nobody}]}], egress: [{ports: [{port: nobody}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" || p.fromNamespace() == "x" }},
		{"from a namespace to a named port", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: serve-80-tcp}]}]}`},
			func(p probe) bool { return p.to == "x/a" && !(p.fromNamespace() == "y" && tcp(p, 80)) }},
		{"egress to a named port", []string{`x: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]}`},
			func(p probe) bool { return p.fromNamespace() == "x" && !tcp(p, 80) }},
		{"egress to a named port of some pods", []string{`x: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: serve-80-udp, protocol: UDP}]}]}`},
			func(p probe) bool {
				return p.fromNamespace() == "x" && !(p.to == "x/b" && p.protocol == corev1.ProtocolUDP && p.port == 80)
			}},
		{"only from the own namespace", []string{`x: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" && p.fromNamespace() != "x" }},
		{"deny egress of a pod", []string{`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}`},
			func(p probe) bool { return p.from == "x/a" }},
		{"deny egress of a namespace", []string{`x: {podSelector: {}, policyTypes: [Egress]}`},
			func(p probe) bool { return p.fromNamespace() == "x" }},
		{"ingress and egress in one policy", []string{`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}]}`},
			func(p probe) bool {
				return p.to == "x/a" && p.from != "x/b" || p.from == "x/a" && !tcp(p, 80)
			}},
		{"denied by the client's side though the server allows it", []string{
			`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: "y"}}, podSelector: {matchLabels: {pod: a}}}]}]}`,
			`"y": {podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}]}]}`},
			func(p probe) bool {
				return p.from == "x/a" && p.to != "y/a" || (p.to == "y/a" || p.to == "y/b") && p.from != "x/a"
			}},
		{"any port of one protocol", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{protocol: TCP}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.protocol != corev1.ProtocolTCP }},
		{"allow all beats one port, ingress", []string{`x: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, `x: {podSelector: {}, ingress: [{}]}`},
			func(probe) bool { return false }},
		{"allow all beats one port, egress", []string{`x: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}`,
			`x: {podSelector: {}, policyTypes: [Egress], egress: [{}]}`}, func(probe) bool { return false }},
		{"egress to an ipBlock", []string{`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.42.1.11/32}}]}]}`},
			func(p probe) bool { return p.from == "x/a" && p.to != "y/b" }},
		{"egress to an ipBlock with exceptions", []string{`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.42.0.11/32, 10.42.2.0/24]}}]}]}`},
			func(p probe) bool { return p.from == "x/a" && (p.to == "x/b" || p.toNamespace() == "z") }},
		{"what one ipBlock excepts another allows", []string{
			`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.11/32]}}]}]}`,
			`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.42.0.11/32}}]}]}`},
			func(p probe) bool { return p.from == "x/a" && p.toNamespace() != "x" }},
		{"ingress from an ipBlock", []string{`x: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.42.2.0/24}}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" && p.fromNamespace() != "z" }},
		{"an ipBlock of IPv6", []string{`x: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "fd00::/8"}}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" }},
		{"ingress and egress are independent", []string{`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]}`,
			`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}`}, to("x/a")},
		{"SCTP is not TCP", []string{`x: {podSelector: {}}`, `x: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81, protocol: SCTP}]}]}`},
			func(p probe) bool {
				return p.toNamespace() == "x" && !(p.to == "x/a" && p.protocol == corev1.ProtocolSCTP && p.port == 81)
			}},
		{"UDP is not TCP", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}`},
			func(p probe) bool { return p.to == "x/a" && !(p.protocol == corev1.ProtocolUDP && p.port == 81) }},
		{"the label that every namespace has", []string{`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: "y"}}}]}]}`},
			func(p probe) bool { return p.to == "x/a" && p.fromNamespace() != "y" }},
		{"not that label", []string{`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: ["y"]}]}}]}]}`},
			func(p probe) bool { return p.from == "x/a" && p.toNamespace() == "y" }},
		{"a range of ports", []string{`x: {podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}`},
			func(p probe) bool { return p.toNamespace() == "x" && !tcp(p, 81) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			input := world()
			add(t, &input, test.policies...)
			reached := reacher(input)
			for _, from := range input.Pods {
				for _, to := range input.Pods {
					if from == to {
						continue
					}
					for _, protocol := range protocols {
						for _, port := range []uint16{80, 81} {
							p := probe{from.Namespace + "/" + from.Name, to.Namespace + "/" + to.Name, protocol, port}
							if reached(p) == test.denied(p) {
								t.Errorf("%+v: reached %v", p, test.denied(p))
							}
						}
					}
				}
			}
		})
	}
}

// Labels that change decide at once, as upstream's cases with updated pods and namespaces want it.
func TestLabelsThatChange(t *testing.T) {
	input := world()
	add(t, &input, `x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns2: updated}}}, {podSelector: {matchLabels: {pod2: updated}}}]}]}`)
	fromY := probe{"y/b", "x/a", corev1.ProtocolTCP, 80}
	fromX := probe{"x/b", "x/a", corev1.ProtocolTCP, 80}
	if reacher(input)(fromY) || reacher(input)(fromX) {
		t.Error("nobody has the labels yet")
	}
	input.Namespaces[1].Labels["ns2"] = "updated"
	if !reacher(input)(fromY) || reacher(input)(fromX) {
		t.Error("only the namespace has the label")
	}
	input.Pods[1].Labels["pod2"] = "updated"
	if !reacher(input)(fromX) {
		t.Error("the pod has the label")
	}
}

// Pods that have ended, that have no address yet or that are on the network of their node are neither peers nor targets.
func TestPodsThatDoNotCount(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"succeeded":      func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"failed":         func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"host network":   func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"no address yet": func(p *corev1.Pod) { p.Status.PodIP = "" },
		"IPv6":           func(p *corev1.Pod) { p.Status.PodIP = "fd00::1" },
	} {
		input := world()
		input.Node = "node-1"
		add(t, &input, `x: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`)
		change(input.Pods[0])
		found := Build(input)
		if len(found) != 1 || found[0].Name != "x/c" || len(found[0].Ingress.Allowed) != 2 {
			t.Error(name, found)
		}
	}
}

func TestWithout(t *testing.T) {
	for _, test := range []struct {
		cidr   string
		except []string
		want   string
	}{
		{"10.0.0.0/8", nil, "10.0.0.0/8"},
		{"10.0.0.5/30", nil, "10.0.0.4/30"},
		{"0.0.0.0/0", []string{"0.0.0.0/0"}, ""},
		{"0.0.0.0/0", []string{"128.0.0.0/2"}, "0.0.0.0/1 192.0.0.0/2"},
		{"10.0.0.0/30", []string{"10.0.0.2/32"}, "10.0.0.0/31 10.0.0.3/32"},
		{"10.0.0.0/30", []string{"10.0.0.2/32", "10.0.0.0/31"}, "10.0.0.3/32"},
		{"10.0.0.0/24", []string{"10.0.0.0/16"}, ""},
		{"10.0.0.0/24", []string{"192.168.0.0/16"}, "10.0.0.0/24"},
	} {
		var words []string
		for _, prefix := range block(&networkingv1.IPBlock{CIDR: test.cidr, Except: test.except}) {
			words = append(words, prefix.String())
		}
		if got := strings.Join(words, " "); got != test.want {
			t.Errorf("%s without %v: %s, not %s", test.cidr, test.except, got, test.want)
		}
	}
}
