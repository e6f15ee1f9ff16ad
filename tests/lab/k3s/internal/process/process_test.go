package process

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestEndOfAChildIsReported(t *testing.T) {
	group := NewGroup()
	defer group.Stop()
	if err := group.Start(Child{Name: "short", Path: "/bin/sh", Args: []string{"-c", "exit 3"}, Grace: time.Second}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-group.Failed():
		if !strings.Contains(err.Error(), "short exited: exit status 3") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not reported")
	}
}

func TestStopIsOrderedAndKillsTheDeaf(t *testing.T) {
	group := NewGroup()
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	script := func(name string) string { return "trap 'echo " + name + "; exit' TERM; while :; do sleep 0.01; done" }
	for _, child := range []Child{
		{Name: "sh", Path: "/bin/sh", Args: []string{"-c", script("second")}, Stage: 2, Grace: 5 * time.Second, Log: log},
		{Name: "sh", Path: "/bin/sh", Args: []string{"-c", script("first")}, Stage: 1, Grace: 5 * time.Second, Log: log},
		{Name: "sh", Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; while :; do sleep 0.01; done"}, Stage: 3, Grace: 200 * time.Millisecond},
	} {
		if err := group.Start(child); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // the shells have to set their traps
	group.Stop()
	content, _ := os.ReadFile(log.Name())
	if string(content) != "first\nsecond\n" {
		t.Errorf("%q", content)
	}
	if err := group.Start(Child{Name: "late", Path: "/bin/true"}); err == nil {
		t.Error("a child was started after the stop")
	}
	select {
	case err := <-group.Failed():
		t.Error("a stop is no failure:", err)
	default:
	}
}

func TestChildrenCannotSpeakToSystemd(t *testing.T) {
	got := cleanEnv([]string{"A=1", "NOTIFY_SOCKET=/run/x", "K3S_TOKEN=secret", "WATCHDOG_USEC=1", "PATH=/bin"})
	if strings.Join(got, " ") != "A=1 PATH=/bin" {
		t.Error(got)
	}
}
