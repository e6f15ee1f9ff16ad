package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/nodepassword"
)

const (
	fieldManager      = "k3s"
	apiService        = "kubernetes"
	reconcileInterval = 10 * time.Second
)

// changes remembers that something has changed, however often that happened. It is a handler for informers.
type changes chan struct{}

func (c changes) notify() {
	select {
	case c <- struct{}{}:
	default:
	}
}

// OnAdd is called for each object that is there or new.
func (c changes) OnAdd(any, bool) { c.notify() }

// OnUpdate is called when an object has changed.
func (c changes) OnUpdate(any, any) { c.notify() }

// OnDelete is called when an object is gone.
func (c changes) OnDelete(any) { c.notify() }

// nodes keeps what the server knows of nodes: their passwords, its own node's labels, their names for CoreDNS, and
// the endpoints of the API server.
type nodes struct {
	config *config
	client kubernetes.Interface
	store  *store
	// verified remembers pairs of hash and password that fit: a node asks for several certificates at once, and each
	// comparison costs 32 MiB and a tenth of a second on purpose.
	verified sync.Map
}

// checkPassword binds a node name to a password, or compares it with the bound one. Errors: nodepassword.ErrMismatch.
func (n *nodes) checkPassword(ctx context.Context, node, password string) error {
	secrets := n.client.CoreV1().Secrets(metav1.NamespaceSystem)
	secret, err := secrets.Get(ctx, nodepassword.SecretName(node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		hash, err := nodepassword.Hash(password)
		if err != nil {
			return err
		}
		immutable := true
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: nodepassword.SecretName(node)},
			Immutable:  &immutable,
			Data:       map[string][]byte{"hash": []byte(hash)},
		}, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		secret, err = secrets.Get(ctx, nodepassword.SecretName(node), metav1.GetOptions{})
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	known := sha256.Sum256(append(secret.Data["hash"], password...))
	if _, found := n.verified.Load(known); found {
		return nil
	}
	if err := nodepassword.Verify(string(secret.Data["hash"]), password); err != nil {
		return err
	}
	n.verified.Store(known, true)
	return nil
}

// checkBootstrapToken looks a token up among the Secrets that `k3s token create` makes.
func (n *nodes) checkBootstrapToken(ctx context.Context, id, password string) error {
	secret, err := n.client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, "bootstrap-token-"+id, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if secret.Type != corev1.SecretTypeBootstrapToken || string(secret.Data["token-secret"]) != password ||
		string(secret.Data["usage-bootstrap-authentication"]) != "true" {
		return errors.New("invalid bootstrap token")
	}
	if expiration := string(secret.Data["expiration"]); expiration != "" {
		end, err := time.Parse(time.RFC3339, expiration)
		if err != nil || time.Now().After(end) {
			return errors.New("expired bootstrap token")
		}
	}
	return nil
}

// run follows the nodes of the cluster until the context ends.
func (n *nodes) run(ctx context.Context) {
	go n.keepEndpoints(ctx)
	factory := informers.NewSharedInformerFactory(n.client, 0)
	informer := factory.Core().V1().Nodes().Informer()
	list := factory.Core().V1().Nodes().Lister()
	news := make(changes, 1)
	informer.AddEventHandler(news)
	informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		DeleteFunc: func(object any) {
			key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
			if err == nil {
				n.forget(ctx, key)
			}
		},
	})
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	var hosts string
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
		all, err := list.List(labels.Everything())
		if err == nil {
			err = n.labelServer(ctx, all)
		}
		if err == nil {
			err = n.followMembers(ctx, all)
		}
		if err == nil {
			if current := nodeHosts(all); current != hosts {
				if err = n.writeNodeHosts(ctx, current); err == nil {
					hosts = current
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			logrus.Errorf("Failed to update nodes: %v", err)
			time.AfterFunc(reconcileInterval, news.notify)
		}
	}
}

// forget deletes the password of a deleted node, so that another machine may take its name.
func (n *nodes) forget(ctx context.Context, node string) {
	err := n.client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, nodepassword.SecretName(node), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		logrus.Errorf("Failed to delete the password of node %s: %v", node, err)
	}
}

// labelServer gives this server's node its role labels, and puts them back when somebody takes them away.
func (n *nodes) labelServer(ctx context.Context, all []*corev1.Node) error {
	roles := map[string]string{"node-role.kubernetes.io/control-plane": "true", etcdRole: "true"}
	member, err := n.config.memberName()
	if err != nil {
		return err
	}
	annotations := map[string]string{memberAddress: n.config.ip, memberName: member}
	if n.config.values.Bool("secrets-encryption") {
		if annotations[encryptionHash], err = n.config.encryptionState(); err != nil {
			return err
		}
	}
	for _, node := range all {
		common := map[string]string{"node.kubernetes.io/instance-type": "k3s", "beta.kubernetes.io/instance-type": "k3s"}
		wanted, notes := common, map[string]string{}
		if node.Name == n.config.node {
			for key, value := range roles {
				wanted[key] = value
			}
			// A member that was removed is not announced again.
			if node.Annotations[removedMember] != member {
				notes = annotations
			}
		}
		if contains(node.Labels, wanted) && contains(node.Annotations, notes) {
			continue
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": wanted, "annotations": notes}})
		if err != nil {
			return err
		}
		_, err = n.client.CoreV1().Nodes().Patch(ctx, node.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func contains(all, wanted map[string]string) bool {
	for key, value := range wanted {
		if all[key] != value {
			return false
		}
	}
	return true
}

// nodeHosts lists the addresses of the nodes as CoreDNS' hosts plugin reads them.
func nodeHosts(all []*corev1.Node) string {
	var lines []string
	for _, node := range all {
		for _, address := range node.Status.Addresses {
			if address.Type == corev1.NodeInternalIP {
				lines = append(lines, address.Address+" "+node.Name+"\n")
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// writeNodeHosts puts the names of the nodes into the configuration of CoreDNS, unless that component is disabled.
func (n *nodes) writeNodeHosts(ctx context.Context, hosts string) error {
	if n.config.disabled("coredns") {
		return nil
	}
	apply := corev1apply.ConfigMap("coredns", metav1.NamespaceSystem).WithData(map[string]string{"NodeHosts": hosts})
	_, err := n.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Apply(ctx, apply, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// keepEndpoints makes the Service default/kubernetes lead to the supervisor's port instead of kube-apiserver's own.
func (n *nodes) keepEndpoints(ctx context.Context) {
	changed := datastore.WatchAddresses(ctx, n.store.client.Load())
	for {
		if err := n.writeEndpoints(ctx); err != nil && ctx.Err() == nil {
			logrus.Errorf("Failed to update the endpoints of the API server: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case _, open := <-changed:
			if !open {
				// Without quorum there is nothing to follow; the interval does until the next start.
				changed = nil
			}
		case <-time.After(reconcileInterval):
		}
	}
}

func (n *nodes) writeEndpoints(ctx context.Context) error {
	servers, err := n.servers(ctx)
	if err != nil {
		return err
	}
	var addresses []corev1.EndpointAddress
	var targets []discoveryv1.Endpoint
	ready := true
	for _, server := range servers {
		addresses = append(addresses, corev1.EndpointAddress{IP: server})
		targets = append(targets, discoveryv1.Endpoint{Addresses: []string{server}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	endpoints := n.client.CoreV1().Endpoints(metav1.NamespaceDefault)
	wantedPort := corev1.EndpointPort{Name: "https", Port: int32(n.config.advertisePort), Protocol: corev1.ProtocolTCP}
	wanted := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: apiService, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets:    []corev1.EndpointSubset{{Addresses: addresses, Ports: []corev1.EndpointPort{wantedPort}}},
	}
	if _, err := endpoints.Update(ctx, wanted, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
		_, err = endpoints.Create(ctx, wanted, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	slices := n.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	name, protocol := wantedPort.Name, wantedPort.Protocol
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: apiService, Labels: map[string]string{discoveryv1.LabelServiceName: apiService}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   targets,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &wantedPort.Port, Protocol: &protocol}},
	}
	_, err = slices.Update(ctx, slice, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = slices.Create(ctx, slice, metav1.CreateOptions{})
	}
	return err
}

// apiServers lists the addresses of the servers, for the load balancers of the agents.
func (n *nodes) apiServers(ctx context.Context) ([]string, error) {
	found, err := n.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, apiService, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, endpoint := range found.Endpoints {
		for _, address := range endpoint.Addresses {
			for _, port := range found.Ports {
				addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
			}
		}
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("no endpoints for service %s", apiService)
	}
	return addresses, nil
}
