package server

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"slipway/tests/lab/k3s/internal/datastore"
)

// Names by which k3s ties Nodes to members of etcd (k3s pkg/etcd/member_controller.go, metadata_controller.go).
const (
	etcdRole      = "node-role.kubernetes.io/etcd"
	memberName    = "etcd.k3s.cattle.io/node-name"
	memberAddress = "etcd.k3s.cattle.io/node-address"
	removeMember  = "etcd.k3s.cattle.io/remove"
	removedMember = "etcd.k3s.cattle.io/removed-node-name"
	finalizer     = "wrangler.cattle.io/managed-etcd-controller"
	voterType     = corev1.NodeConditionType("EtcdIsVoter")

	keepMembersEvery = 15 * time.Second
)

// endpoint is this server's port as others reach it.
func (c *config) endpoint() string {
	return net.JoinHostPort(c.advertise, strconv.Itoa(c.advertisePort))
}

// servers are the addresses of the servers that live, this one among them, sorted. Those on another port are left
// out: a Service has one.
func (n *nodes) servers(ctx context.Context) ([]string, error) {
	found, err := datastore.Addresses(ctx, n.store.client.Load())
	if err != nil {
		return nil, err
	}
	all := []string{n.config.advertise}
	for _, address := range found {
		if host, port, err := net.SplitHostPort(address); err == nil && port == strconv.Itoa(n.config.advertisePort) {
			all = append(all, host)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// finishReset ends what a cluster-reset has begun: this node may get another password, since that of a snapshot may
// be older than the one on the disk.
func (n *nodes) finishReset(ctx context.Context) error {
	if _, err := os.Stat(n.config.resetFlag()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	n.forget(ctx, n.config.node)
	return os.Remove(n.config.resetFlag())
}

// followMembers removes from etcd the members whose Nodes are deleted or annotated for it.
func (n *nodes) followMembers(ctx context.Context, all []*corev1.Node) error {
	var failed error
	for _, node := range all {
		if _, server := node.Labels[etcdRole]; !server {
			continue
		}
		failed = errors.Join(failed, n.followMember(ctx, node.DeepCopy()))
	}
	return failed
}

func (n *nodes) followMember(ctx context.Context, node *corev1.Node) error {
	guarded := slices.Contains(node.Finalizers, finalizer)
	name, address := node.Annotations[memberName], node.Annotations[memberAddress]
	switch {
	case node.DeletionTimestamp != nil:
		if !guarded {
			return nil
		}
		if err := datastore.Remove(ctx, n.store.client.Load(), name, address); err != nil {
			return err
		}
		node.Finalizers = slices.DeleteFunc(node.Finalizers, func(each string) bool { return each == finalizer })
	case strings.EqualFold(node.Annotations[removeMember], "true"):
		removed, done := node.Annotations[removedMember]
		switch {
		case done && (name == "" || name == removed):
			return nil
		case done:
			// The node has joined again, as another member.
			delete(node.Annotations, removedMember)
			node.Annotations[removeMember] = "false"
		default:
			if err := datastore.Remove(ctx, n.store.client.Load(), name, address); err != nil {
				return err
			}
			node.Annotations[removedMember] = name
			delete(node.Annotations, memberName)
			delete(node.Annotations, memberAddress)
		}
	case !guarded && n.config.elect.Load():
		// A server that is alone has no member that could be removed.
		node.Finalizers = append(node.Finalizers, finalizer)
	default:
		return nil
	}
	_, err := n.client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		// The change that was in the way comes as news.
		return nil
	}
	return err
}

// keepMembers looks after the members of etcd, and tells by the Nodes' conditions how they are, until the context ends.
func (n *nodes) keepMembers(ctx context.Context, beforePromotion func() error) {
	keeper := &datastore.Keeper{Client: n.store.client.Load(), BeforePromotion: beforePromotion}
	for {
		states, err := keeper.Step(ctx, time.Now())
		if err == nil && states != nil {
			err = n.writeStates(ctx, states)
		}
		if err != nil && ctx.Err() == nil {
			logrus.Errorf("Failed to look after the members of etcd: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(keepMembersEvery):
		}
	}
}

// writeStates writes the condition EtcdIsVoter of all servers' Nodes.
func (n *nodes) writeStates(ctx context.Context, states map[string]datastore.State) error {
	selector := labels.Set{etcdRole: "true"}.String()
	found, err := n.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return err
	}
	for _, node := range found.Items {
		state, known := states[node.Annotations[memberName]]
		if !known {
			state = datastore.NotMember
		}
		if err := n.writeState(ctx, &node, state); err != nil {
			return err
		}
	}
	return nil
}

func (n *nodes) writeState(ctx context.Context, node *corev1.Node, state datastore.State) error {
	status := corev1.ConditionFalse
	if state.Voter {
		status = corev1.ConditionTrue
	}
	now := metav1.Now()
	wanted := corev1.NodeCondition{
		Type: voterType, Status: status, Reason: state.Reason, Message: state.Message, LastHeartbeatTime: now, LastTransitionTime: now,
	}
	for _, present := range node.Status.Conditions {
		if present.Type != voterType {
			continue
		}
		if present.Status == status && present.Reason == state.Reason {
			return nil
		}
		if present.Status == status {
			wanted.LastTransitionTime = present.LastTransitionTime
		}
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{wanted}}})
	if err != nil {
		return err
	}
	_, err = n.client.CoreV1().Nodes().Patch(ctx, node.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
