package netpol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"slipway/tests/lab/k3s/internal/netpol/rules"
)

const patience = 5 * time.Second

// space is a network namespace. It lives as long as the thread that it was made on, so nothing is left behind.
type space struct {
	name   string
	thread int
	calls  chan func()
}

// newSpace needs root.
func newSpace(t *testing.T, name string) *space {
	t.Helper()
	s := &space{name: name, calls: make(chan func())}
	made := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		s.thread = syscall.Gettid()
		made <- err
		for call := range s.calls {
			call()
		}
	}()
	if err := <-made; err != nil {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	t.Cleanup(func() { close(s.calls) })
	s.sh(t, "ip link set lo up")
	return s
}

// do calls a function inside the namespace; sockets and processes that it makes belong there.
func (s *space) do(call func()) {
	done := make(chan struct{})
	s.calls <- func() { defer close(done); call() }
	<-done
}

// sh runs a command in the namespace.
func (s *space) sh(t *testing.T, format string, arguments ...any) string {
	t.Helper()
	var output []byte
	var err error
	line := fmt.Sprintf(format, arguments...)
	s.do(func() { output, err = exec.Command("sh", "-c", line).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s: %s: %v: %s", s.name, line, err, output)
	}
	return string(output)
}

// serve answers on 80 and 81 with the address that the caller seems to have, for as long as the caller keeps asking.
func (s *space) serve(t *testing.T) {
	t.Helper()
	for _, port := range []int{80, 81} {
		var listener net.Listener
		var packets net.PacketConn
		var err error
		s.do(func() {
			var packetErr error
			listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
			packets, packetErr = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
			err = errors.Join(err, packetErr)
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close(); packets.Close() })
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer connection.Close()
					for request := make([]byte, 1); ; {
						if _, err := io.ReadFull(connection, request); err != nil {
							return
						}
						fmt.Fprintln(connection, connection.RemoteAddr().(*net.TCPAddr).IP)
					}
				}()
			}
		}()
		go func() {
			for request := make([]byte, 1); ; {
				_, caller, err := packets.ReadFrom(request)
				if err != nil {
					return
				}
				packets.WriteTo([]byte(fmt.Sprintln(caller.(*net.UDPAddr).IP)), caller)
			}
		}()
	}
}

// dial connects from inside the namespace.
func (s *space) dial(network, address string) (connection net.Conn, err error) {
	s.do(func() { connection, err = net.DialTimeout(network, address, patience) })
	return connection, err
}

// ask sends a byte over a connection and returns the answer.
func ask(connection net.Conn) (string, error) {
	connection.SetDeadline(time.Now().Add(patience))
	if _, err := connection.Write([]byte("?")); err != nil {
		return "", err
	}
	answer := make([]byte, 64)
	n, err := connection.Read(answer)
	return strings.TrimSpace(string(answer[:n])), err
}

// call connects, asks and hangs up.
func (s *space) call(network, address string) (string, error) {
	connection, err := s.dial(network, address)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	return ask(connection)
}

// lab is two nodes with two pods each, wired as flannel's host-gw does: a bridge on each, routes between them.
type lab struct {
	spaces map[string]*space
	pods   []*corev1.Pod
}

var addresses = map[string]string{
	"client-1": "10.42.1.11", "server-1": "10.42.1.12", "client-2": "10.42.2.11", "server-2": "10.42.2.12",
	"node-1": "192.168.77.1", "node-2": "192.168.77.2",
}

// services are translated on node-1 as kube-proxy does it: one whose pod is server-2, one whose pod is client-1.
const services = `*nat
-A PREROUTING -d 10.43.0.2/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.2.12:81
-A PREROUTING -d 10.43.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.1.11:81
-A POSTROUTING -s 10.42.1.11/32 -d 10.42.1.11/32 -j MASQUERADE
COMMIT
`

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, program := range []string{"ip", "iptables-save", "iptables-restore"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	l := &lab{spaces: map[string]*space{}}
	for number := 1; number <= 2; number++ {
		node := newSpace(t, fmt.Sprintf("node-%d", number))
		l.spaces[node.name] = node
		node.sh(t, "ip link add cni0 type bridge && ip addr add 10.42.%d.1/24 dev cni0 && ip link set cni0 up", number)
		// The kernel limits how often it tells one address about refusals; we ask more often.
		node.sh(t, "cd /proc/sys/net/ipv4 && echo 1 > ip_forward && echo 0 > icmp_ratelimit && echo 1 > %s", bridgeFilter)
		for _, role := range []string{"client", "server"} {
			name := fmt.Sprintf("%s-%d", role, number)
			pod := newSpace(t, name)
			l.spaces[name] = pod
			node.sh(t, "ip link add %s type veth peer name eth0 netns %d && ip link set %s master cni0 up && bridge link set dev %s hairpin on", name, pod.thread, name, name)
			pod.sh(t, "ip addr add %s/24 dev eth0 && ip link set eth0 up && ip route add default via 10.42.%d.1", addresses[name], number)
			pod.serve(t)
			l.pods = append(l.pods, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"role": role, "name": name}},
				Spec: corev1.PodSpec{NodeName: node.name, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
					{Name: "web", ContainerPort: 80}, {Name: "admin", ContainerPort: 81},
				}}}},
				Status: corev1.PodStatus{PodIP: addresses[name]},
			})
		}
		node.serve(t)
	}
	first, second := l.spaces["node-1"], l.spaces["node-2"]
	first.sh(t, "ip link add eth0 type veth peer name eth0 netns %d", second.thread)
	first.sh(t, "ip addr add 192.168.77.1/24 dev eth0 && ip link set eth0 up && ip route add 10.42.2.0/24 via 192.168.77.2")
	second.sh(t, "ip addr add 192.168.77.2/24 dev eth0 && ip link set eth0 up && ip route add 10.42.1.0/24 via 192.168.77.1")
	first.sh(t, "iptables-restore --noflush <<'END'\n%sEND\n", services)
	return l
}

// enforce applies policies, each the YAML of a spec, on both nodes.
func (l *lab) enforce(t *testing.T, policies ...string) {
	t.Helper()
	input := rules.Input{Pods: l.pods, Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}}}
	for i, text := range policies {
		policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint(i)}}
		if err := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096).Decode(&policy.Spec); err != nil {
			t.Fatal(text, err)
		}
		input.Policies = append(input.Policies, policy)
	}
	for _, node := range []string{"node-1", "node-2"} {
		input.Node = node
		var err error
		l.spaces[node].do(func() { err = Apply(context.Background(), rules.Chains(rules.Build(input))) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// check tries connections, each in the words FROM NETWORK TO:PORT yes|no; the other end must see the address of FROM.
func (l *lab) check(t *testing.T, attempts ...string) {
	t.Helper()
	for _, attempt := range attempts {
		words := strings.Fields(attempt)
		host, port, _ := strings.Cut(words[2], ":")
		if address, known := addresses[host]; known {
			host = address
		}
		seen, err := l.spaces[words[0]].call(words[1], host+":"+port)
		if (err == nil) != (words[3] == "yes") {
			t.Errorf("%s: %q %v", attempt, seen, err)
		} else if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: must be refused at once, as k3s does it: %v", attempt, err)
		} else if err == nil && strings.Contains(words[0], "client") && host != "10.43.0.1" && seen != addresses[words[0]] {
			t.Errorf("%s: the other end saw %s", attempt, seen)
		}
	}
}

func TestInTheKernel(t *testing.T) {
	l := newLab(t)
	for _, test := range []struct {
		name     string
		policies []string
		attempts []string
	}{
		{"no policy", nil, []string{
			"client-1 tcp server-1:80 yes", "client-1 udp server-1:80 yes", "client-1 tcp server-2:81 yes", "client-2 udp server-1:81 yes",
			"client-1 tcp node-1:80 yes", "client-1 tcp node-2:80 yes", "node-1 tcp server-1:80 yes", "node-2 tcp server-1:80 yes",
			"client-1 tcp 10.43.0.2:80 yes", "client-1 tcp 10.43.0.1:80 yes",
		}},
		{"deny ingress", []string{`{podSelector: {matchLabels: {role: server}}}`}, []string{
			"client-1 tcp server-1:80 no", "client-1 udp server-1:80 no", "client-2 tcp server-1:80 no", "client-2 udp server-1:80 no",
			"client-1 tcp server-2:80 no", "client-1 tcp 10.43.0.2:80 no",
			// Probes of the kubelet come from the pod's own node; other nodes are strangers.
			"node-1 tcp server-1:80 yes", "node-2 tcp server-1:80 no", "node-2 tcp server-2:80 yes",
			// Pods without a policy of their own, and the answers to what a pod asks.
			"client-1 tcp client-2:80 yes", "server-1 tcp client-1:80 yes", "server-1 udp client-2:80 yes",
		}},
		{"ingress from some pods to a port", []string{`{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{podSelector: {matchLabels: {name: client-2}}}], ports: [{port: web}]}]}`}, []string{
			"client-2 tcp server-1:80 yes", "client-2 tcp server-1:81 no", "client-2 udp server-1:80 no", "client-2 tcp server-2:80 yes",
			"client-1 tcp server-1:80 no", "server-1 tcp server-2:80 no", "client-1 tcp 10.43.0.2:80 no",
		}},
		{"ingress by protocol, range and SCTP", []string{`{podSelector: {matchLabels: {role: server}}, ingress: [{ports: [{protocol: UDP}, {port: 81, endPort: 90}, {port: 80, protocol: SCTP}]}]}`}, []string{
			"client-1 udp server-1:80 yes", "client-1 tcp server-1:81 yes", "client-1 tcp server-1:80 no", "client-2 tcp server-1:80 no",
		}},
		{"ingress from addresses", []string{`{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/16, except: [10.42.2.8/29]}}]}]}`}, []string{
			"client-1 tcp server-1:80 yes", "client-1 tcp server-2:80 yes", "client-2 tcp server-1:80 no", "node-2 tcp server-1:80 no",
		}},
		{"deny egress", []string{`{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress]}`}, []string{
			"client-1 tcp server-1:80 no", "client-1 udp server-1:80 no", "client-1 tcp server-2:80 no", "client-1 tcp 10.43.0.2:80 no",
			// Its node as well, as with k3s; itself never, nor the answers to what it is asked.
			"client-1 tcp node-1:80 no", "client-1 tcp node-2:80 no", "client-1 tcp 10.43.0.1:80 yes",
			"server-1 tcp client-1:80 yes", "server-2 udp client-1:80 yes", "node-1 tcp client-1:80 yes", "node-2 tcp client-1:80 yes",
		}},
		{"egress to some pods, counted behind the Service", []string{`{podSelector: {matchLabels: {name: client-1}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {name: server-2}}}], ports: [{port: admin}]}]}`}, []string{
			"client-1 tcp server-2:81 yes", "client-1 tcp server-2:80 no", "client-1 tcp 10.43.0.2:80 yes", "client-1 tcp server-1:81 no", "client-2 tcp server-1:81 yes",
		}},
		{"both ends must allow", []string{
			`{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: server}}}]}]}`,
			`{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{podSelector: {matchLabels: {name: client-1}}}]}]}`}, []string{
			"client-1 tcp server-1:80 yes", "client-1 tcp server-2:80 yes", "client-2 tcp server-1:80 no", "client-2 tcp server-2:80 no", "client-1 tcp client-2:80 no",
		}},
		{"policies add up", []string{`{podSelector: {}}`, `{podSelector: {matchLabels: {name: server-1}}, ingress: [{}]}`}, []string{
			"client-1 tcp server-1:80 yes", "client-2 udp server-1:81 yes", "client-1 tcp server-2:80 no", "server-1 tcp client-1:80 no",
		}},
		{"policies gone", nil, []string{"client-1 tcp server-1:80 yes", "client-2 udp server-1:81 yes", "client-1 tcp node-1:80 yes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l.enforce(t, test.policies...)
			l.check(t, test.attempts...)
		})
	}
}

// What was connected before a policy came is answered on; new connections are refused.
func TestEstablishedConnectionsGoOn(t *testing.T) {
	l := newLab(t)
	l.enforce(t)
	var open []net.Conn
	for _, target := range []string{"server-1", "server-2"} {
		connection, err := l.spaces["client-1"].dial("tcp", addresses[target]+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		if _, err := ask(connection); err != nil {
			t.Fatal(err)
		}
		open = append(open, connection)
	}
	l.enforce(t, `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	for _, connection := range open {
		if _, err := ask(connection); err != nil {
			t.Error(connection.RemoteAddr(), err)
		}
	}
	l.check(t, "client-1 tcp server-1:80 no", "client-1 tcp server-2:80 no")
}

// Others change the same table: their rules stay, and ours are first again.
func TestOthersRules(t *testing.T) {
	l := newLab(t)
	node, deny := l.spaces["node-1"], `{podSelector: {matchLabels: {role: server}}}`
	l.enforce(t, deny)
	node.sh(t, "iptables -N KUBE-FORWARD && iptables -I FORWARD -j KUBE-FORWARD && iptables -A KUBE-FORWARD -j ACCEPT")
	l.check(t, "client-1 tcp server-1:80 yes")
	l.enforce(t, deny)
	l.check(t, "client-1 tcp server-1:80 no")
	node.sh(t, "iptables -F KUBE-ROUTER-FORWARD")
	l.check(t, "client-1 tcp server-1:80 yes")
	l.enforce(t, deny)
	l.check(t, "client-1 tcp server-1:80 no")
	if saved := node.sh(t, "iptables-save -t filter"); !strings.Contains(saved, "-A FORWARD -j KUBE-FORWARD") {
		t.Error(saved)
	}
	before := node.sh(t, "iptables-save -t filter -c")
	l.enforce(t, deny)
	if after := node.sh(t, "iptables-save -t filter -c"); counters(after) != counters(before) {
		t.Error("rules that are in force must not be written again:", after)
	}
}

// counters are the lines of rules with their counters, which a rule that is written again loses.
func counters(saved string) string {
	var lines []string
	for line := range strings.Lines(saved) {
		if strings.HasPrefix(line, "[") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// k3s-killall.sh and the module k3s_remove drop the lines with these names and load the rest: nothing of ours is left.
func TestRemovalLeavesNothing(t *testing.T) {
	l := newLab(t)
	node := l.spaces["node-1"]
	l.enforce(t, `{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}`)
	var kept []string
	ours := regexp.MustCompile(`KUBE-|CNI-|flannel|FLANNEL`)
	for line := range strings.Lines(node.sh(t, "iptables-save")) {
		if !ours.MatchString(line) {
			kept = append(kept, line)
		}
	}
	node.sh(t, "iptables-restore <<'END'\n%sEND\n", strings.Join(kept, ""))
	if left := node.sh(t, "iptables-save -t filter"); strings.Contains(left, "-A ") || strings.Contains(left, "KUBE") {
		t.Error(left)
	}
	l.check(t, "client-1 tcp server-1:80 yes")
}
