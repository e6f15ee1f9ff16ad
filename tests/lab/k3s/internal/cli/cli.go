// Package cli is the command line of the stand-in.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"k8s.io/component-base/version"

	"slipway/tests/lab/k3s/internal/agent"
	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/payload"
	"slipway/tests/lab/k3s/internal/process"
	"slipway/tests/lab/k3s/internal/server"
)

// later lists the sub-commands of k3s that the stand-in does not have yet.
var later = []string{"check-config", "completion"}

const usage = `NAME:
   k3s - Kubernetes, but small and simple (stand-in of the lab)

USAGE:
   k3s [global options] command [command options]

COMMANDS:
   server           Run management server
   agent            Run node agent
   kubectl          Run kubectl
   crictl           Run crictl
   ctr              Run ctr
   token            Manage tokens
   etcd-snapshot    Manage etcd snapshots
   secrets-encrypt  Control secrets encryption and keys rotation
   certificate      Check and rotate certificates

GLOBAL OPTIONS:
   --help, -h       show help
   --version, -v    print the version
`

// Main runs a sub-command and returns the exit code. Arguments follow the program's name.
func Main(tools payload.Payload, arguments []string) int {
	logrus.SetOutput(os.Stderr)
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	if len(arguments) == 0 {
		fmt.Print(usage)
		return 0
	}
	command, rest := arguments[0], arguments[1:]
	switch command {
	case "--version", "-v":
		fmt.Printf("k3s version %s (%s)\ngo version %s\n", version.Get().GitVersion, version.Get().GitCommit, runtime.Version())
		return 0
	case "--help", "-h", "help":
		fmt.Print(usage)
		return 0
	case "server":
		return run(tools, options.Server, rest)
	case "agent":
		return run(tools, options.Agent, rest)
	case "token":
		return tokenCommand(rest)
	case "etcd-snapshot":
		return snapshotCommand(rest)
	case "secrets-encrypt":
		return encryptCommand(rest)
	case "certificate":
		return certificateCommand(rest)
	case "ctr", "crictl":
		return Tool(command, rest)
	}
	if slices.Contains(later, command) {
		fmt.Fprintf(os.Stderr, "k3s %s is not part of the stand-in yet\n", command)
		return 1
	}
	fmt.Fprintf(os.Stderr, "No help topic for '%s'\n", command)
	return 3
}

// run runs a node until it is told to stop or one of its components ends.
func run(tools payload.Payload, role options.Role, arguments []string) int {
	if slices.ContainsFunc(arguments, func(a string) bool { return a == "--help" || a == "-h" }) {
		options.Usage(os.Stdout, role)
		return 0
	}
	values, warnings, err := options.Parse(role, arguments, os.Getenv)
	for _, warning := range warnings {
		logrus.Warn(warning)
	}
	var wrong options.UsageError
	if errors.As(err, &wrong) {
		fmt.Printf("Incorrect Usage: %v\n\n", err)
		options.Usage(os.Stdout, role)
	}
	if err != nil {
		logrus.Errorf("%v", err)
		return fatal(err)
	}
	if values.Bool("debug") {
		logrus.SetLevel(logrus.DebugLevel)
	}
	if os.Getuid() != 0 {
		return fatal(fmt.Errorf("%s must run as root, or with --rootless and/or --disable-agent", role))
	}
	if err := runNode(tools, role, values); err != nil {
		return fatal(err)
	}
	return 0
}

func fatal(err error) int {
	// logrus.Fatal would end the process before deferred calls.
	logrus.StandardLogger().Logf(logrus.FatalLevel, "Error: %v", err)
	return 1
}

func runNode(tools payload.Payload, role options.Role, values *options.Values) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var joinToken string
	if role == options.Agent {
		var err error
		if joinToken, err = agent.Check(values); err != nil {
			return err
		}
	}
	node, ips, err := agent.Identity(values)
	if err != nil {
		return err
	}
	data := paths.Data(values.String("data-dir"))
	if err := os.MkdirAll(string(data), 0o755); err != nil {
		return err
	}
	if err := tools.Unpack(data); err != nil {
		return err
	}
	images, err := tools.Images()
	if err != nil {
		return err
	}
	logrus.Infof("Starting k3s %s (%s)", version.Get().GitVersion, version.Get().GitCommit)
	group := process.NewGroup()
	defer group.Stop()
	if role == options.Server && values.Bool("cluster-reset") {
		return server.Reset(ctx, server.Config{Values: values, Group: group, Node: node, IPs: ips})
	}
	go func() {
		if err := start(ctx, tools, role, values, group, images, joinToken, node, ips); err != nil && ctx.Err() == nil {
			group.Fail(err)
		}
	}()
	select {
	case err := <-group.Failed():
		daemon.SdNotify(false, daemon.SdNotifyStopping)
		return err
	case <-ctx.Done():
		daemon.SdNotify(false, daemon.SdNotifyStopping)
		logrus.Info("Shutting down k3s")
		return nil
	}
}

func start(ctx context.Context, tools payload.Payload, role options.Role, values *options.Values, group *process.Group, images map[string]string, joinToken, node string, ips []string) error {
	if role == options.Server {
		crds, err := tools.TraefikCRDs()
		if err != nil {
			return err
		}
		return server.Run(ctx, server.Config{
			Values: values, Group: group, Images: images, TraefikCRDs: crds, Node: node, IPs: ips, Ready: notifyReady,
		})
	}
	return agent.Run(ctx, agent.Config{
		Values: values, Group: group, Images: images, Token: joinToken, Node: node, IPs: ips,
		Ready: func() {
			logrus.Info("k3s agent is up and running")
			notifyReady()
		},
	})
}

func notifyReady() {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		logrus.Errorf("Failed to notify systemd: %v", err)
	}
}

// Tool runs one of the unpacked programs against the node's own containerd.
func Tool(name string, arguments []string) int {
	program := filepath.Join(paths.Data(dataDir()).Bin(), name)
	if _, err := os.Stat(program); err != nil {
		fmt.Fprintf(os.Stderr, "%s is not unpacked here: this build does not carry it, or no node was started yet\n", name)
		return 1
	}
	environment := os.Environ()
	switch name {
	case "ctr":
		environment = append(environment, "CONTAINERD_ADDRESS="+paths.ContainerdSocket)
		if os.Getenv("CONTAINERD_NAMESPACE") == "" {
			environment = append(environment, "CONTAINERD_NAMESPACE=k8s.io")
		}
	case "crictl":
		environment = append(environment, "CONTAINER_RUNTIME_ENDPOINT=unix://"+paths.ContainerdSocket)
	}
	return replace(program, append([]string{name}, arguments...), environment)
}

func dataDir() string {
	if name := os.Getenv("K3S_DATA_DIR"); name != "" {
		return name
	}
	return paths.DefaultData
}

func replace(program string, arguments, environment []string) int {
	if err := syscall.Exec(program, arguments, environment); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

// PrepareKubectl points kubectl at the server's kubeconfig where the user named none.
func PrepareKubectl(arguments []string, warnings io.Writer) {
	for _, argument := range arguments {
		if argument == "--kubeconfig" || strings.HasPrefix(argument, "--kubeconfig=") {
			return
		}
	}
	if os.Getenv("KUBECONFIG") != "" {
		return
	}
	file, err := os.Open(paths.Kubeconfig)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	os.Setenv("KUBECONFIG", paths.Kubeconfig)
	if errors.Is(err, os.ErrPermission) {
		fmt.Fprintf(warnings, "Unable to read %s, please start server with --write-kubeconfig-mode or --write-kubeconfig-group to modify kube config permissions\n", paths.Kubeconfig)
		return
	}
	file.Close()
}
