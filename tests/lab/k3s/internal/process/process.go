// Package process runs the components of a node as child processes that live and die with the main process.
package process

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Child describes a component.
type Child struct {
	Name string   // argv[0]
	Path string   // program; empty: this program itself, which finds by argv[0] what it has to be
	Args []string // without argv[0]
	Env  []string // in addition to the environment of the main process
	Log  io.Writer
	// Order of the stop: children of a lower stage are gone before those of a higher one are told to stop.
	Stage int
	// Grace is the time between SIGTERM and SIGKILL.
	Grace time.Duration
	// Exited is called when the child ends by itself, before that ends the group; nil error: exit status 0.
	Exited func(error)
}

// Group starts children and stops all of them together.
type Group struct {
	starts chan func()
	failed chan error

	mutex    sync.Mutex
	children []*running
	stopping bool
}

type running struct {
	Child
	command *exec.Cmd
	done    chan struct{}
	ended   bool // on purpose
}

// NewGroup makes a group. It holds one thread of the operating system for ever: the kernel sends the signal of
// PR_SET_PDEATHSIG when the *thread* that started the child ends, and Go ends threads as it likes.
func NewGroup() *Group {
	g := &Group{starts: make(chan func()), failed: make(chan error, 1)}
	go func() {
		runtime.LockOSThread()
		for start := range g.starts {
			start()
		}
	}()
	return g
}

// Failed delivers the first unexpected end of a child.
func (g *Group) Failed() <-chan error { return g.failed }

// Fail reports an error of a component that runs inside the main process.
func (g *Group) Fail(err error) {
	select {
	case g.failed <- err:
	default:
	}
}

// Start starts a child. Errors: the program cannot be started, the group is stopping.
func (g *Group) Start(child Child) error {
	path := child.Path
	if path == "" {
		path = "/proc/self/exe"
	}
	command := exec.Command(path, child.Args...)
	command.Args[0] = child.Name
	command.Env = append(cleanEnv(os.Environ()), child.Env...)
	command.Stdout, command.Stderr = child.Log, child.Log
	if child.Log == nil {
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
	}
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.stopping {
		return fmt.Errorf("%s not started: shutting down", child.Name)
	}
	result := make(chan error)
	g.starts <- func() { result <- command.Start() }
	if err := <-result; err != nil {
		return fmt.Errorf("failed to start %s: %w", child.Name, err)
	}
	r := &running{child, command, make(chan struct{}), false}
	g.children = append(g.children, r)
	go g.wait(r)
	return nil
}

func (g *Group) wait(r *running) {
	err := r.command.Wait()
	close(r.done)
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.stopping || r.ended {
		return
	}
	if r.Exited != nil {
		r.Exited(err)
	}
	if err == nil {
		err = fmt.Errorf("exit status 0")
	}
	g.Fail(fmt.Errorf("%s exited: %w", r.Name, err))
}

// End stops one child, which may then be started anew. A name that does not run is no error.
func (g *Group) End(name string) {
	g.mutex.Lock()
	at := slices.IndexFunc(g.children, func(r *running) bool { return r.Name == name })
	if at < 0 || g.stopping {
		g.mutex.Unlock()
		return
	}
	r := g.children[at]
	r.ended = true
	g.children = slices.Delete(g.children, at, at+1)
	g.mutex.Unlock()
	r.stop()
}

// Stop stops all children, stage by stage.
func (g *Group) Stop() {
	g.mutex.Lock()
	g.stopping = true
	children := slices.Clone(g.children)
	g.mutex.Unlock()
	stages := map[int][]*running{}
	var order []int
	for _, r := range children {
		if stages[r.Stage] == nil {
			order = append(order, r.Stage)
		}
		stages[r.Stage] = append(stages[r.Stage], r)
	}
	slices.Sort(order)
	for _, stage := range order {
		var waiting sync.WaitGroup
		for _, r := range stages[stage] {
			waiting.Go(r.stop)
		}
		waiting.Wait()
	}
}

func (r *running) stop() {
	r.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.done:
	case <-time.After(r.Grace):
		r.command.Process.Kill()
		<-r.done
	}
}

// Run runs this program under another name to its end. Errors carry what it printed.
func Run(ctx context.Context, name string, arguments ...string) error {
	command := exec.CommandContext(ctx, "/proc/self/exe", arguments...)
	command.Args[0] = name
	command.Env = cleanEnv(os.Environ())
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// cleanEnv drops what only the main process may use: the children would tell systemd that the service is ready.
func cleanEnv(environment []string) []string {
	return slices.DeleteFunc(environment, func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "K3S_") || strings.HasPrefix(name, "WATCHDOG_")
	})
}

// Poll calls a function until it succeeds. Errors: that of the context, with the last error of the function.
func Poll(ctx context.Context, interval time.Duration, try func(context.Context) error) error {
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(interval):
		}
	}
}
