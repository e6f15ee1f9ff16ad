package loadbalancer

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// echo answers each connection with a name.
func echo(t *testing.T, name string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			io.WriteString(connection, name)
			connection.Close()
		}
	}()
	return listener
}

func ask(t *testing.T, b *Balancer) string {
	t.Helper()
	connection, err := net.Dial("tcp", strings.TrimPrefix(b.URL(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	answer, _ := io.ReadAll(connection)
	return string(answer)
}

func TestFailover(t *testing.T) {
	one, two := echo(t, "one"), echo(t, "two")
	file := filepath.Join(t.TempDir(), "etc", "lb.json")
	b, err := Start(0, "https://one:6443", one.Addr().String(), file)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, b); got != "one" {
		t.Error(got)
	}
	if err := b.Set([]string{one.Addr().String(), two.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	one.Close()
	if got := ask(t, b); got != "two" {
		t.Error("the other server must take over:", got)
	}
	if err := b.Set(nil); err != nil {
		t.Fatal(err)
	}
	var saved state
	content, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(content, &saved) != nil || !slices.Contains(saved.ServerAddresses, two.Addr().String()) {
		t.Error("what was learnt must be kept, an empty list ignored:", string(content), err)
	}
	again, err := Start(0, "https://one:6443", one.Addr().String(), file)
	if err != nil || ask(t, again) != "two" {
		t.Error("a restarted agent must know all servers:", err)
	}
	other, err := Start(0, "https://elsewhere:6443", one.Addr().String(), file)
	if err != nil || ask(t, other) != "" {
		t.Error("another cluster's servers must be forgotten:", err)
	}
}
