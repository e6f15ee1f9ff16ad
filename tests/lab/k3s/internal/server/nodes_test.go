package server

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"slipway/tests/lab/k3s/internal/nodepassword"
)

func TestNodePasswordIsBoundAtFirstUse(t *testing.T) {
	n := &nodes{client: fake.NewClientset()}
	ctx := t.Context()
	for range 2 {
		if err := n.checkPassword(ctx, "node-a", "first"); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.checkPassword(ctx, "node-a", "second"); !errors.Is(err, nodepassword.ErrMismatch) {
		t.Error(err)
	}
	secret, err := n.client.CoreV1().Secrets("kube-system").Get(ctx, "node-a.node-password.k3s", metav1.GetOptions{})
	if err != nil || !*secret.Immutable {
		t.Error(secret, err)
	}
	n.forget(ctx, "node-a")
	if err := n.checkPassword(ctx, "node-a", "second"); err != nil {
		t.Error("the name of a deleted node is free again:", err)
	}
	if err := n.checkPassword(ctx, "node-a", "first"); !errors.Is(err, nodepassword.ErrMismatch) {
		t.Error("what was right for the old node must not be remembered:", err)
	}
}

func TestBootstrapTokens(t *testing.T) {
	secret := func(id string, values map[string]string) *corev1.Secret {
		data := map[string][]byte{"token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")}
		for key, value := range values {
			data[key] = []byte(value)
		}
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id, Namespace: "kube-system"}, Type: corev1.SecretTypeBootstrapToken, Data: data,
		}
	}
	n := &nodes{client: fake.NewClientset(
		secret("aaaaaa", nil),
		secret("bbbbbb", map[string]string{"expiration": time.Now().Add(-time.Minute).Format(time.RFC3339)}),
		secret("cccccc", map[string]string{"usage-bootstrap-authentication": "false"}),
	)}
	for id, want := range map[string]bool{"aaaaaa": true, "bbbbbb": false, "cccccc": false, "dddddd": false} {
		if err := n.checkBootstrapToken(t.Context(), id, "0123456789abcdef"); (err == nil) != want {
			t.Error(id, err)
		}
	}
	if err := n.checkBootstrapToken(t.Context(), "aaaaaa", "wrong"); err == nil {
		t.Error("a wrong secret was accepted")
	}
}

func TestRoleLabelsArePutBack(t *testing.T) {
	n := &nodes{config: testConfig(t, t.TempDir()), client: fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-a", Labels: map[string]string{"own": "label"}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-b"}},
	)}
	found, err := n.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := []*corev1.Node{&found.Items[0], &found.Items[1]}
	if err := n.labelServer(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"node-a": "true", "node-b": ""} {
		node, err := n.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || node.Labels["node-role.kubernetes.io/control-plane"] != want {
			t.Error(name, node.Labels, err)
		}
		if name == "node-a" && node.Labels["own"] != "label" {
			t.Error("a label of the user was lost:", node.Labels)
		}
	}
}
