package server

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// enableLabel chooses the nodes that Services get: without any node that has it, all of them.
const enableLabel = "svccontroller.k3s.cattle.io/enablelb"

// serviceLB does what k3s' controller of this name shows: Services of type LoadBalancer get the addresses of nodes. Its
// pods, which lead from there to the Service, are not needed: kube-proxy does the same for any address in the status.
type serviceLB struct {
	client    kubernetes.Interface
	factory   informers.SharedInformerFactory
	nodes     corelisters.NodeLister
	services  corelisters.ServiceLister
	endpoints discoverylisters.EndpointSliceLister
}

func newServiceLB(client kubernetes.Interface) *serviceLB {
	factory := informers.NewSharedInformerFactory(client, 0)
	return &serviceLB{
		client, factory,
		factory.Core().V1().Nodes().Lister(), factory.Core().V1().Services().Lister(), factory.Discovery().V1().EndpointSlices().Lister(),
	}
}

// run keeps the addresses of Services right until the context ends.
func (s *serviceLB) run(ctx context.Context) {
	news := make(changes, 1)
	for _, informer := range []cache.SharedIndexInformer{
		s.factory.Core().V1().Nodes().Informer(), s.factory.Core().V1().Services().Informer(), s.factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		informer.AddEventHandler(news)
	}
	s.factory.Start(ctx.Done())
	s.factory.WaitForCacheSync(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
		if err := s.reconcile(ctx); err != nil && ctx.Err() == nil {
			logrus.Errorf("Failed to update addresses of services: %v", err)
			time.AfterFunc(reconcileInterval, news.notify)
		}
	}
}

// hostPort is a port of all nodes.
type hostPort struct {
	port     int32
	protocol corev1.Protocol
}

// reconcile gives all Services the addresses that they ought to have.
func (s *serviceLB) reconcile(ctx context.Context) error {
	nodes, err := s.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	services, err := s.services.List(labels.Everything())
	if err != nil {
		return err
	}
	// The Service that was there first keeps a port.
	services = slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	usable, taken := usableNodes(nodes), map[hostPort]bool{}
	var failures []error
	for _, service := range services {
		var addresses []string
		if service.Spec.Type == corev1.ServiceTypeLoadBalancer {
			if service.Spec.LoadBalancerClass != nil {
				continue // somebody else's
			}
			if take(taken, service.Spec.Ports) {
				if addresses, err = s.addresses(service, usable); err != nil {
					failures = append(failures, err)
					continue
				}
			}
		}
		failures = append(failures, s.write(ctx, service, addresses))
	}
	return errors.Join(failures...)
}

// take reserves the ports of a Service, all or none of them.
func take(taken map[hostPort]bool, ports []corev1.ServicePort) bool {
	for _, port := range ports {
		if taken[hostPort{port.Port, port.Protocol}] {
			return false
		}
	}
	for _, port := range ports {
		taken[hostPort{port.Port, port.Protocol}] = true
	}
	return true
}

// usableNodes are those on which a pod of k3s' controller would be ready.
func usableNodes(nodes []*corev1.Node) []*corev1.Node {
	labelled := slices.ContainsFunc(nodes, func(node *corev1.Node) bool {
		_, found := node.Labels[enableLabel]
		return found
	})
	return slices.DeleteFunc(slices.Clone(nodes), func(node *corev1.Node) bool {
		return labelled && node.Labels[enableLabel] != "true" || !isReady(node) || slices.ContainsFunc(node.Spec.Taints, repels)
	})
}

func isReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(condition corev1.NodeCondition) bool {
		return condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue
	})
}

// repels tells whether a taint keeps the pods of k3s' controller away. They tolerate what every DaemonSet does and a few more.
func repels(taint corev1.Taint) bool {
	switch taint.Effect {
	case corev1.TaintEffectPreferNoSchedule:
		return false
	case corev1.TaintEffectNoSchedule:
		if taint.Key == "node-role.kubernetes.io/control-plane" || taint.Key == "node-role.kubernetes.io/master" {
			return false
		}
	}
	return taint.Key != "CriticalAddonsOnly" && !strings.HasPrefix(taint.Key, "node.kubernetes.io/")
}

// addresses are those that a Service ought to have, sorted.
func (s *serviceLB) addresses(service *corev1.Service, nodes []*corev1.Node) ([]string, error) {
	local := service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	var holders map[string]bool
	if local {
		var err error
		if holders, err = s.holders(service); err != nil {
			return nil, err
		}
	}
	var found []string
	for _, node := range nodes {
		if local && !holders[node.Name] {
			continue
		}
		for _, address := range node.Status.Addresses {
			if address.Type == corev1.NodeInternalIP {
				found = append(found, address.Address)
			}
		}
	}
	slices.Sort(found)
	return found, nil
}

// holders are the names of the nodes with a ready pod of a Service.
func (s *serviceLB) holders(service *corev1.Service) (map[string]bool, error) {
	selector := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service.Name})
	found, err := s.endpoints.EndpointSlices(service.Namespace).List(selector)
	if err != nil {
		return nil, err
	}
	holders := map[string]bool{}
	for _, slice := range found {
		for _, endpoint := range slice.Endpoints {
			pod := endpoint.TargetRef != nil && endpoint.TargetRef.Kind == "Pod"
			if ready := endpoint.Conditions.Ready; pod && ready != nil && *ready && endpoint.NodeName != nil {
				holders[*endpoint.NodeName] = true
			}
		}
	}
	return holders, nil
}

// write puts addresses into the status of a Service that has others.
func (s *serviceLB) write(ctx context.Context, service *corev1.Service, addresses []string) error {
	var current []string
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		current = append(current, ingress.IP)
	}
	if slices.Equal(current, addresses) {
		return nil
	}
	changed := service.DeepCopy()
	changed.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	for _, address := range addresses {
		changed.Status.LoadBalancer.Ingress = append(changed.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: address})
	}
	_, err := s.client.CoreV1().Services(service.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // the Service is another one by now, and the news of that are on their way
	}
	if err == nil {
		logrus.Infof("Service %s/%s has the addresses %v", service.Namespace, service.Name, addresses)
	}
	return err
}
