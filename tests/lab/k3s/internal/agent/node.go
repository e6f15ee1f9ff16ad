package agent

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"slipway/tests/lab/k3s/internal/process"
)

var errNoPodCIDR = errors.New("node has no pod CIDR yet")

// controllerClient makes the client of the agent's own code.
func (a *agent) controllerClient() (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", a.data.Agent("k3scontroller.kubeconfig"))
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// waitForNode waits until the kubelet has registered the node and it has its pod range.
func (a *agent) waitForNode(ctx context.Context, client kubernetes.Interface) error {
	reported := time.Now()
	return process.Poll(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		node, err := client.CoreV1().Nodes().Get(ctx, a.node, metav1.GetOptions{})
		if err == nil && node.Spec.PodCIDR == "" {
			err = errNoPodCIDR
		}
		if err != nil && time.Since(reported) > 10*time.Second {
			reported = time.Now()
			logrus.Infof("Waiting for node %s: %v", a.node, err)
		}
		return err
	})
}

// describeNode merges labels and annotations into the node: labels at every start, as k3s does, never removing any.
func (a *agent) describeNode(ctx context.Context, client kubernetes.Interface) error {
	labels := map[string]string{}
	for _, label := range a.values.SplitList("node-label") {
		key, value, _ := strings.Cut(label, "=")
		labels[key] = value
	}
	arguments, err := json.Marshal(a.values.Arguments())
	if err != nil {
		return err
	}
	environment, err := json.Marshal(environment())
	if err != nil {
		return err
	}
	sum := sha256.Sum256(append(arguments, environment...))
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": labels,
		"annotations": map[string]string{
			"k3s.io/node-args":        string(arguments),
			"k3s.io/node-env":         string(environment),
			"k3s.io/node-config-hash": base32.StdEncoding.EncodeToString(sum[:]),
			"k3s.io/hostname":         a.node,
			"k3s.io/internal-ip":      strings.Join(a.ips, ","),
		},
	}})
	if err != nil {
		return err
	}
	return process.Poll(ctx, time.Second, func(ctx context.Context) error {
		_, err := client.CoreV1().Nodes().Patch(ctx, a.node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		return err
	})
}

// environment lists the K3S_ variables of this process, secrets as ********.
func environment() map[string]string {
	found := map[string]string{}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "K3S_") {
			continue
		}
		if strings.Contains(name, "TOKEN") || strings.Contains(name, "ENDPOINT") || strings.Contains(name, "AUTH") {
			value = "********"
		}
		found[name] = value
	}
	return found
}

// parseTaints checks taints of the form key[=value]:effect.
func parseTaints(taints []string) error {
	for _, taint := range taints {
		key, effect, found := strings.Cut(taint, ":")
		if !found || key == "" || (effect != "NoSchedule" && effect != "PreferNoSchedule" && effect != "NoExecute") {
			return fmt.Errorf("invalid taint spec: %s", taint)
		}
	}
	return nil
}
