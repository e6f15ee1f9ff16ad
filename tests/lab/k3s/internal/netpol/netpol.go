// Package netpol enforces NetworkPolicies for the pods of one node, as the controller of kube-router does that k3s
// embeds: it watches policies, namespaces and pods, and keeps the rules that follow from them in iptables.
package netpol

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"

	"slipway/tests/lab/k3s/internal/netpol/rules"
)

const (
	bridgeFilter = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	// gather is how long changes are collected; they come in bursts.
	gather     = 50 * time.Millisecond
	retryAfter = time.Second
	// checkEvery is how often the rules in force are looked at, as flannel looks at its own: kube-proxy may have put a
	// rule before ours, somebody may have flushed a chain.
	checkEvery = 5 * time.Second
)

type controller struct {
	node       string
	policies   networkinglisters.NetworkPolicyLister
	namespaces corelisters.NamespaceLister
	pods       corelisters.PodLister
	changed    chan struct{}
	apply      applier
	applied    []rules.Chain
}

// Start puts the rules of this node in force and keeps them so until the context ends; then they stay as they are.
// Errors: the context ended before the state of the cluster was known.
func Start(ctx context.Context, client kubernetes.Interface, node string) error {
	for _, name := range []string{"iptables-save", "iptables-restore"} {
		if _, err := exec.LookPath(name); err != nil {
			logrus.Warnf("Skipping network policy controller start: %v", err)
			return nil
		}
	}
	// Without it pods of the same node would reach each other past the rules.
	if err := os.WriteFile(bridgeFilter, []byte("1"), 0o644); err != nil {
		logrus.Warnf("Network policies between pods of this node cannot be enforced: %v", err)
	}
	logrus.Info("Starting network policy controller")
	return start(ctx, client, node, Apply, checkEvery)
}

type applier func(context.Context, []rules.Chain) error

func start(ctx context.Context, client kubernetes.Interface, node string, apply applier, check time.Duration) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	policies := factory.Networking().V1().NetworkPolicies()
	namespaces, pods := factory.Core().V1().Namespaces(), factory.Core().V1().Pods()
	c := &controller{
		node: node, policies: policies.Lister(), namespaces: namespaces.Lister(), pods: pods.Lister(),
		changed: make(chan struct{}, 1), apply: apply,
	}
	for _, informer := range []cache.SharedIndexInformer{policies.Informer(), namespaces.Informer(), pods.Informer()} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { c.note() },
			UpdateFunc: func(any, any) { c.note() },
			DeleteFunc: func(any) { c.note() },
		})
		if err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("failed to list %s for network policies: %w", kind, context.Cause(ctx))
		}
	}
	// Once, before the caller starts the pod network: pods that start then meet the rules for all others.
	c.sync(ctx, true)
	go c.run(ctx, check)
	return nil
}

// note remembers that something changed.
func (c *controller) note() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *controller) run(ctx context.Context, check time.Duration) {
	ticker := time.NewTicker(check)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.sync(ctx, true)
		case <-c.changed:
			time.Sleep(gather)
			c.sync(ctx, false)
		}
	}
}

// sync puts the rules for the present state in force; rules that it applied before are looked at only if check says so.
func (c *controller) sync(ctx context.Context, check bool) {
	pods, err := c.build()
	chains := rules.Chains(pods)
	same := reflect.DeepEqual(chains, c.applied)
	if err == nil && same && !check {
		return
	}
	if err == nil {
		err = c.apply(ctx, chains)
	}
	switch {
	case err == nil:
		if !same {
			logrus.Infof("Network policies: %s", rules.Describe(pods))
		}
		c.applied = chains
	case ctx.Err() == nil:
		logrus.Errorf("Failed to enforce network policies: %v", err)
		c.applied = nil
		time.AfterFunc(retryAfter, c.note)
	}
}

func (c *controller) build() ([]rules.Pod, error) {
	policies, err := c.policies.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	namespaces, err := c.namespaces.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	pods, err := c.pods.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	return rules.Build(rules.Input{Node: c.node, Policies: policies, Namespaces: namespaces, Pods: pods}), nil
}

// Apply puts chains in force in the table filter of this machine, all at once, and removes those that went.
func Apply(ctx context.Context, chains []rules.Chain) error {
	saved, err := run(ctx, "", "iptables-save", "-t", "filter")
	if err != nil {
		return err
	}
	plan := rules.Plan(saved, chains)
	if plan == "" {
		return nil
	}
	_, err = run(ctx, plan, "iptables-restore", "--wait", "5", "--noflush")
	return err
}

func run(ctx context.Context, input string, command ...string) (string, error) {
	child := exec.CommandContext(ctx, command[0], command[1:]...)
	child.Stdin = strings.NewReader(input)
	var failure bytes.Buffer
	child.Stderr = &failure
	output, err := child.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(failure.String()))
	}
	return string(output), nil
}
