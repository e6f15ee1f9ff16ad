// Command cert-manager is one of cert-manager's programs, told apart by the first argument: the controller, the webhook
// or the CA injector. Upstream's mains are in no Go module that can be had; everything they start is, in cert-manager's
// own module. The flags are those that upstream's chart sets.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/cert-manager/cert-manager/internal/cmd/util"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
)

// programs are what an image's entrypoint may name.
var programs = map[string]func(context.Context, []string) error{
	"controller": runController,
	"webhook":    runWebhook,
	"cainjector": runCAInjector,
}

func main() {
	ctx, exit := util.SetupExitHandler(context.Background(), util.GracefulShutdown)
	defer exit() // It may end the process: nothing deferred before it would run.
	logf.InitLogs()
	defer logf.FlushLogs()
	ctrl.SetLogger(logf.Log)
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		logf.Log.Error(err, "ends with an error")
		util.SetExitCode(err)
	}
}

// run starts the program that the first of args names, with the others, and waits for its end.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if program, known := programs[args[0]]; known {
			return program(logf.NewContext(ctx, logf.Log, args[0]), args[1:])
		}
	}
	return errors.New("call it with controller, webhook or cainjector as the first argument")
}
