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

func TestAChildMayBeReplaced(t *testing.T) {
	group := NewGroup()
	defer group.Stop()
	child := Child{Name: "sleep", Path: "/bin/sleep", Args: []string{"1000"}, Grace: 5 * time.Second}
	for range 2 {
		if err := group.Start(child); err != nil {
			t.Fatal(err)
		}
		group.End("sleep")
		group.End("no-such-child")
	}
	select {
	case err := <-group.Failed():
		t.Error("an end on purpose is no failure:", err)
	case <-time.After(100 * time.Millisecond):
	}
	if len(group.children) > 0 {
		t.Error(group.children)
	}
}

func TestHowAChildEndedIsToldFirst(t *testing.T) {
	group := NewGroup()
	defer group.Stop()
	told := make(chan error, 1)
	child := Child{Name: "short", Path: "/bin/true", Exited: func(err error) { told <- err }}
	if err := group.Start(child); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-group.Failed():
		if !strings.Contains(err.Error(), "short exited: exit status 0") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not reported")
	}
	select {
	case err := <-told:
		if err != nil {
			t.Error(err)
		}
	default:
		t.Error("told after the group has failed, or never")
	}
}

func TestChildrenCannotSpeakToSystemd(t *testing.T) {
	got := cleanEnv([]string{"A=1", "NOTIFY_SOCKET=/run/x", "K3S_TOKEN=secret", "WATCHDOG_USEC=1", "PATH=/bin"})
	if strings.Join(got, " ") != "A=1 PATH=/bin" {
		t.Error(got)
	}
}
