package main

import (
	"fmt"
	"path/filepath"

	"github.com/cert-manager/cert-manager/internal/apis/config/shared"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/util/configfile"
	utilfeature "github.com/cert-manager/cert-manager/pkg/util/feature"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// defaults turns an empty versioned configuration into the program's own with every default set.
func defaults(scheme *runtime.Scheme, versioned runtime.Object, own any) error {
	scheme.Default(versioned)
	return scheme.Convert(versioned, own, nil)
}

// read fills a configuration from the command line args. A flag wins over the file that --config names, so the file
// is read between two passes over the flags. Without load there is no --config.
func read(name string, args []string, add func(*pflag.FlagSet), load func(file string) error) error {
	file, err := parse(name, args, add, load != nil)
	if err != nil || file == "" {
		return err
	}
	if err := load(file); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	_, err = parse(name, args, add, true)
	return err
}

func parse(name string, args []string, add func(*pflag.FlagSet), withFile bool) (file string, err error) {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	if withFile {
		flags.StringVar(&file, "config", "", "file with the configuration object of this program")
	}
	add(flags)
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	if flags.NArg() > 0 {
		return "", fmt.Errorf("%s takes flags only, not %q", name, flags.Arg(0))
	}
	return file, nil
}

// loadFile reads a configuration object from file into target.
func loadFile(file string, target configfile.ConfigFile) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	loader, err := configfile.NewConfigurationFSLoader(nil, path)
	if err != nil {
		return err
	}
	return loader.Load(target)
}

// addCommon adds the flags that all programs have.
func addCommon(flags *pflag.FlagSet, kubeconfig *string, gates *map[string]bool, logging *logsapi.LoggingConfiguration) {
	flags.StringVar(kubeconfig, "kubeconfig", *kubeconfig, "kubeconfig, outside a cluster")
	flags.Var(cliflag.NewMapStringBool(gates), "feature-gates", "features to switch on or off, name=bool,...")
	logf.AddFlags(logging, flags)
}

// addLeaderElection adds the flags of the leader election.
func addLeaderElection(flags *pflag.FlagSet, c *shared.LeaderElectionConfig) {
	flags.BoolVar(&c.Enabled, "leader-elect", c.Enabled, "work only while no other instance does")
	flags.StringVar(&c.Namespace, "leader-election-namespace", c.Namespace, "namespace of the Lease")
	flags.DurationVar(&c.LeaseDuration, "leader-election-lease-duration", c.LeaseDuration, "how long a lead lasts unrenewed")
	flags.DurationVar(&c.RenewDeadline, "leader-election-renew-deadline", c.RenewDeadline, "give the lead up after so long")
	flags.DurationVar(&c.RetryPeriod, "leader-election-retry-period", c.RetryPeriod, "time between attempts")
}

// apply checks what validation found and sets what is global to the process.
func apply(found field.ErrorList, gates map[string]bool, logging *logsapi.LoggingConfiguration) error {
	if len(found) > 0 {
		return found.ToAggregate()
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(gates); err != nil {
		return err
	}
	return logf.ValidateAndApply(logging)
}
