package netpol

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"slipway/tests/lab/k3s/internal/netpol/rules"
)

func pod(name, address string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"name": name}},
		Spec:       corev1.PodSpec{NodeName: "node-1"},
		Status:     corev1.PodStatus{PodIP: address},
	}
}

// next waits for the chains that are applied next and returns them as text.
func next(t *testing.T, applied <-chan []rules.Chain) string {
	t.Helper()
	select {
	case chains := <-applied:
		var lines []string
		for _, chain := range chains {
			lines = append(lines, chain.Rules...)
		}
		return strings.Join(lines, "\n")
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was applied")
		return ""
	}
}

func TestController(t *testing.T) {
	ctx := t.Context()
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "deny"}}
	client := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, pod("old", "10.42.0.5"), policy)
	applied := make(chan []rules.Chain, 100)
	fail := make(chan error, 1)
	err := start(ctx, client, "node-1", func(_ context.Context, chains []rules.Chain) error {
		select {
		case err := <-fail:
			return err
		default:
			applied <- chains
			return nil
		}
	}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(applied) != 1 {
		t.Fatal("what is known at the start must be in force when the start returns:", len(applied))
	}
	if text := next(t, applied); !strings.Contains(text, `"to default/old"`) {
		t.Error(text)
	}

	fail <- errors.New("the table is locked")
	if _, err := client.CoreV1().Pods("default").Create(ctx, pod("new", "10.42.0.6"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if text := next(t, applied); !strings.Contains(text, `"to default/new"`) || len(fail) != 0 {
		t.Error("not tried again after an error:", text)
	}

	ready := pod("new", "10.42.0.6")
	ready.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := client.CoreV1().Pods("default").UpdateStatus(ctx, ready, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * gather)
	if len(applied) != 0 {
		t.Error("a change that means nothing to policies was applied")
	}

	if err := client.NetworkingV1().NetworkPolicies("default").Delete(ctx, "deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if text := next(t, applied); strings.Contains(text, "REJECT") {
		t.Error("enforced after its deletion:", text)
	}
}

// What is in force is looked at again and again, for others change the same table.
func TestChecks(t *testing.T) {
	applied := make(chan []rules.Chain)
	apply := func(ctx context.Context, chains []rules.Chain) error {
		select {
		case applied <- chains:
		case <-ctx.Done():
		}
		return nil
	}
	go start(t.Context(), fake.NewClientset(), "node-1", apply, time.Millisecond)
	for range 3 {
		next(t, applied)
	}
}

func TestStartEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := start(ctx, fake.NewClientset(), "node-1", nil, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
