package server

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

// soon is how long the controller may take for a change.
const soon = time.Second

// machine is a ready node.
func machine(name, address string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
}

// balanced is a Service of type LoadBalancer; those with a higher age are older.
func balanced(name string, age time.Duration, ports ...int32) *corev1.Service {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
	}
	for _, port := range ports {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Port: port, Protocol: corev1.ProtocolTCP})
	}
	return service
}

// follow runs the controller on objects of a test.
func follow(t *testing.T, nodes []*corev1.Node, services ...*corev1.Service) kubernetes.Interface {
	t.Helper()
	client := fake.NewClientset()
	for _, node := range nodes {
		if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, service := range services {
		if _, err := client.CoreV1().Services("ns").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	go newServiceLB(client).run(t.Context())
	return client
}

// expect waits for the addresses of a Service.
func expect(t *testing.T, client kubernetes.Interface, name string, wanted ...string) {
	t.Helper()
	var found []string
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		service, err := client.CoreV1().Services("ns").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found = nil
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			found = append(found, ingress.IP)
		}
		if slices.Equal(found, wanted) {
			return
		}
	}
	t.Errorf("%s: has %v, wanted %v", name, found, wanted)
}

func updateNode(t *testing.T, client kubernetes.Interface, name string, change func(*corev1.Node)) {
	t.Helper()
	node, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	change(node)
	if _, err := client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func updateService(t *testing.T, client kubernetes.Interface, name string, change func(*corev1.Service)) {
	t.Helper()
	service, err := client.CoreV1().Services("ns").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	change(service)
	if _, err := client.CoreV1().Services("ns").Update(t.Context(), service, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestServicesGetTheAddressesOfReadyNodes(t *testing.T) {
	client := follow(t, []*corev1.Node{machine("b", "10.0.0.2"), machine("a", "10.0.0.1")}, balanced("web", 0, 80))
	expect(t, client, "web", "10.0.0.1", "10.0.0.2")
	updateNode(t, client, "a", func(node *corev1.Node) { node.Status.Conditions[0].Status = corev1.ConditionUnknown })
	expect(t, client, "web", "10.0.0.2")
	updateNode(t, client, "a", func(node *corev1.Node) { node.Status.Conditions[0].Status = corev1.ConditionTrue })
	expect(t, client, "web", "10.0.0.1", "10.0.0.2")
	if err := client.CoreV1().Nodes().Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "web", "10.0.0.1")
	updateService(t, client, "web", func(service *corev1.Service) { service.Spec.Type = corev1.ServiceTypeClusterIP })
	expect(t, client, "web")
	updateService(t, client, "web", func(service *corev1.Service) { service.Spec.Type = corev1.ServiceTypeLoadBalancer })
	expect(t, client, "web", "10.0.0.1")
}

func TestLabelledNodesOnly(t *testing.T) {
	client := follow(t, []*corev1.Node{machine("a", "10.0.0.1"), machine("b", "10.0.0.2")}, balanced("web", 0, 80))
	label := func(value string) {
		t.Helper()
		updateNode(t, client, "b", func(node *corev1.Node) { node.Labels = map[string]string{enableLabel: value} })
	}
	label("true")
	expect(t, client, "web", "10.0.0.2")
	label("false")
	expect(t, client, "web")
	updateNode(t, client, "b", func(node *corev1.Node) { node.Labels = nil })
	expect(t, client, "web", "10.0.0.1", "10.0.0.2")
}

func TestTaintsKeepServicesAway(t *testing.T) {
	var nodes []*corev1.Node
	for address, taint := range map[string]corev1.Taint{
		"10.0.0.1": {Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule},
		"10.0.0.2": {Key: "node.kubernetes.io/unschedulable", Effect: corev1.TaintEffectNoSchedule},
		"10.0.0.3": {Key: "CriticalAddonsOnly", Effect: corev1.TaintEffectNoExecute},
		"10.0.0.4": {Key: "mine", Effect: corev1.TaintEffectPreferNoSchedule},
		"10.0.0.5": {Key: "nvidia.com/gpu", Effect: corev1.TaintEffectNoSchedule},
		"10.0.0.6": {Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoExecute},
	} {
		node := machine("n"+address, address)
		node.Spec.Taints = []corev1.Taint{taint}
		nodes = append(nodes, node)
	}
	client := follow(t, nodes, balanced("web", 0, 80))
	expect(t, client, "web", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
}

func TestLocalTrafficGoesToNodesWithReadyPods(t *testing.T) {
	service := balanced("web", 0, 80)
	service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	client := follow(t, []*corev1.Node{machine("a", "10.0.0.1"), machine("b", "10.0.0.2")}, service)
	endpoint := func(node string, ready bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Endpoints:  []discoveryv1.Endpoint{endpoint("a", false), endpoint("b", true)},
	}
	if _, err := client.DiscoveryV1().EndpointSlices("ns").Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "web", "10.0.0.2")
	slice.Endpoints = []discoveryv1.Endpoint{endpoint("a", true), endpoint("b", false)}
	if _, err := client.DiscoveryV1().EndpointSlices("ns").Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "web", "10.0.0.1")
}

func TestAPortBelongsToTheOldestService(t *testing.T) {
	client := follow(t, []*corev1.Node{machine("a", "10.0.0.1")}, balanced("new", 0, 443, 81), balanced("old", time.Hour, 80, 443), balanced("other", 0, 82))
	expect(t, client, "old", "10.0.0.1")
	expect(t, client, "other", "10.0.0.1")
	expect(t, client, "new")
	if err := client.CoreV1().Services("ns").Delete(t.Context(), "old", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "new", "10.0.0.1")
}

func TestServicesOfOthersAreLeftAlone(t *testing.T) {
	class, foreign := "example.org/balancer", balanced("foreign", time.Hour, 80)
	foreign.Spec.LoadBalancerClass = &class
	foreign.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	client := follow(t, []*corev1.Node{machine("a", "10.0.0.1")}, foreign, balanced("web", 0, 80))
	expect(t, client, "web", "10.0.0.1")
	expect(t, client, "foreign", "192.0.2.1")
}

func TestServiceLBIsLeftOutOnRequest(t *testing.T) {
	for _, disabled := range []bool{false, true} {
		arguments := []string{"--disable", "traefik"}
		if disabled {
			arguments = []string{"--disable", "traefik,servicelb"}
		}
		if testConfig(t, t.TempDir(), arguments...).disabled("servicelb") != disabled {
			t.Error(disabled)
		}
	}
}
