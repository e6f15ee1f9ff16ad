// The stand-in for k3s in the lab: one program that behaves as the k3s command does towards installers, and runs
// Kubernetes, etcd, flannel and containerd as children of its main process.
package main

import (
	"embed"
	"os"
	"path/filepath"

	"slipway/tests/lab/k3s/internal/cli"
	"slipway/tests/lab/k3s/internal/etcd"
	"slipway/tests/lab/k3s/internal/flanneld"
	"slipway/tests/lab/k3s/internal/kube"
	"slipway/tests/lab/k3s/internal/payload"
	"slipway/tests/lab/k3s/internal/server"
)

//go:embed all:payload
var files embed.FS

func main() {
	os.Exit(run())
}

// run finds by argv[0] what this process is: a component, kubectl, a tool, or k3s itself.
func run() int {
	name := filepath.Base(os.Args[0])
	if program, found := kube.Programs[name]; found {
		return program()
	}
	switch name {
	case "etcd":
		return etcd.Main()
	case server.RestoreProgram:
		return etcd.RestoreMain()
	case "flannel":
		return flanneld.Main()
	case "kubectl":
		return kubectl()
	case "ctr", "crictl":
		return cli.Tool(name, os.Args[1:])
	}
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		os.Args = os.Args[1:]
		return kubectl()
	}
	return cli.Main(payload.Payload{Files: files}, os.Args[1:])
}

func kubectl() int {
	cli.PrepareKubectl(os.Args[1:], os.Stderr)
	return kube.Kubectl()
}
