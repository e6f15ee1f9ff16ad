package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cert-manager/cert-manager/internal/apis/config/shared"
	"github.com/cert-manager/cert-manager/internal/apis/config/shared/validation"
	"github.com/cert-manager/cert-manager/pkg/apis/certmanager"
	"github.com/cert-manager/cert-manager/pkg/controller"
	challenges "github.com/cert-manager/cert-manager/pkg/controller/acmechallenges"
	orders "github.com/cert-manager/cert-manager/pkg/controller/acmeorders"
	ingresses "github.com/cert-manager/cert-manager/pkg/controller/certificate-shim/ingresses"
	requestsacme "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/acme"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	requestsca "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	requestsselfsigned "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	requestsvault "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/vault"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/metrics"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	"github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	"github.com/cert-manager/cert-manager/pkg/controller/issuers"
	"github.com/cert-manager/cert-manager/pkg/healthz"
	dnsutil "github.com/cert-manager/cert-manager/pkg/issuer/acme/dns/util"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"

	// Controllers and issuers register themselves when they are imported.
	_ "github.com/cert-manager/cert-manager/pkg/issuer/acme"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/vault"
)

// defaultControllers are those that upstream starts by default, without Venafi's.
var defaultControllers = []string{
	issuers.ControllerName,
	clusterissuers.ControllerName,
	metrics.ControllerName,
	ingresses.ControllerName,
	orders.ControllerName,
	challenges.ControllerName,
	requestsacme.CRControllerName,
	approver.ControllerName,
	requestsca.CRControllerName,
	requestsselfsigned.CRControllerName,
	requestsvault.CRControllerName,
	trigger.ControllerName,
	issuing.ControllerName,
	keymanager.ControllerName,
	requestmanager.ControllerName,
	readiness.ControllerName,
	revisionmanager.ControllerName,
}

func runController(ctx context.Context, args []string) error {
	options, err := controllerOptions(args)
	if err != nil {
		return err
	}
	factory, err := controller.NewContextFactory(ctx, options.ContextOptions)
	if err != nil {
		return err
	}
	common, err := factory.Build()
	if err != nil {
		return err
	}
	enabled := enabledControllers(options.controllers)
	healthy := healthz.NewServer(leadTimeout)

	group, ctx := errgroup.WithContext(ctx)
	if err := serveMetrics(ctx, group, options, common, enabled); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "0.0.0.0:9403")
	if err != nil {
		return err
	}
	group.Go(func() error { return healthy.Start(ctx, listener) })
	elected := make(chan struct{})
	if options.leaderElection.Enabled {
		group.Go(func() error { return lead(ctx, options, factory, healthy, elected) })
	} else {
		close(elected)
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-elected:
			return control(ctx, factory, common, enabled)
		}
	})
	return group.Wait()
}

// controllerConfig is what the flags say.
type controllerConfig struct {
	controller.ContextOptions
	leaderElection shared.LeaderElectionConfig
	controllers    []string
	metrics        string
	gates          map[string]bool
	logging        *logsapi.LoggingConfiguration
}

// leadTimeout is for how long a lead that ended without anybody noticing counts as healthy, as in Kubernetes' own programs.
const leadTimeout = 20 * time.Second

// workers is the number of concurrent workers of each controller.
const workers = 5

// controllerOptions reads the flags over upstream's defaults. These lie in a package that needs Venafi's client, which
// no Go proxy serves: so they are repeated here, there is no --config, and Venafi's issuer is not part of this build.
func controllerOptions(args []string) (*controllerConfig, error) {
	c := &controllerConfig{
		leaderElection: shared.LeaderElectionConfig{
			Enabled:       true,
			Namespace:     "kube-system",
			LeaseDuration: 60 * time.Second,
			RenewDeadline: 40 * time.Second,
			RetryPeriod:   15 * time.Second,
		},
		controllers: []string{"*"},
		metrics:     "0.0.0.0:9402",
		gates:       map[string]bool{},
		logging:     logsapi.NewLoggingConfiguration(),
	}
	c.KubernetesAPIQPS, c.KubernetesAPIBurst = 20, 50
	c.ClusterResourceNamespace = "kube-system"
	c.ClusterIssuerAmbientCredentials = true
	c.HTTP01SolverResourceRequestCPU = resource.MustParse("10m")
	c.HTTP01SolverResourceRequestMemory = resource.MustParse("64Mi")
	c.HTTP01SolverResourceLimitsCPU = resource.MustParse("100m")
	c.HTTP01SolverResourceLimitsMemory = resource.MustParse("64Mi")
	c.ACMEHTTP01SolverRunAsNonRoot = true
	c.DNS01Nameservers = dnsutil.RecursiveNameservers
	c.DNS01CheckRetryPeriod = 10 * time.Second
	c.MaxConcurrentChallenges = 60
	c.DefaultIssuerKind, c.DefaultIssuerGroup = "Issuer", certmanager.GroupName
	c.DefaultAutoCertificateAnnotations = []string{"kubernetes.io/tls-acme"}
	c.CopiedAnnotationPrefixes = []string{"*", "-kubectl.kubernetes.io/", "-fluxcd.io/", "-argocd.argoproj.io/"}
	c.CertificateRequestMinimumBackoffDuration = time.Hour
	c.CertificateRequestMaximumBackoffDuration = 32 * time.Hour

	var recursiveOnly bool
	err := read("cert-manager-controller", args, func(flags *pflag.FlagSet) {
		addCommon(flags, &c.Kubeconfig, &c.gates, c.logging)
		addLeaderElection(flags, &c.leaderElection)
		text := func(target *string, name string) { flags.StringVar(target, name, *target, "") }
		text(&c.ClusterResourceNamespace, "cluster-resource-namespace")
		text(&c.HTTP01SolverImage, "acme-http01-solver-image")
		text(&c.HTTP01SolverRuntimeClassName, "acme-http01-solver-runtime-class-name")
		text(&c.DefaultIssuerName, "default-issuer-name")
		text(&c.DefaultIssuerKind, "default-issuer-kind")
		text(&c.DefaultIssuerGroup, "default-issuer-group")
		text(&c.metrics, "metrics-listen-address")
		flags.Var(cliflag.NewMapStringString(&c.HTTP01SolverExtraLabels), "acme-http01-solver-extra-labels", "")
		flags.StringSliceVar(&c.controllers, "controllers", c.controllers, "*, NAME or -NAME")
		flags.StringSliceVar(&c.DNS01Nameservers, "dns01-recursive-nameservers", c.DNS01Nameservers, "")
		flags.BoolVar(&recursiveOnly, "dns01-recursive-nameservers-only", false, "")
		flags.BoolVar(&c.EnableOwnerRef, "enable-certificate-owner-ref", false, "")
		flags.IntVar(&c.MaxConcurrentChallenges, "max-concurrent-challenges", c.MaxConcurrentChallenges, "")
	}, nil)
	c.DNS01CheckAuthoritative = !recursiveOnly
	if err != nil {
		return nil, err
	}
	return c, apply(validation.ValidateLeaderElectionConfig(&c.leaderElection, nil), c.gates, c.logging)
}

// enabledControllers resolves the list of controllers: names, * for all that are on by default, -name for all but one.
func enabledControllers(names []string) sets.Set[string] {
	wanted, unwanted := sets.New[string](), sets.New[string]()
	for _, name := range names {
		switch {
		case name == "*":
			wanted.Insert(defaultControllers...)
		case strings.HasPrefix(name, "-"):
			unwanted.Insert(name[1:])
		default:
			wanted.Insert(name)
		}
	}
	if len(wanted) == 0 {
		wanted.Insert(defaultControllers...)
	}
	return wanted.Difference(unwanted)
}

// serveMetrics serves what the chart's annotations promise to Prometheus.
func serveMetrics(
	ctx context.Context,
	group *errgroup.Group,
	c *controllerConfig,
	common *controller.Context,
	enabled sets.Set[string],
) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", c.metrics)
	if err != nil {
		return err
	}
	acme, other := common.SharedInformerFactory.Acme().V1(), common.SharedInformerFactory.Certmanager().V1()
	common.Metrics.SetupACMECollector(acme.Challenges().Lister())
	common.Metrics.SetupCertificateCollector(other.Certificates().Lister())
	common.Metrics.SetupIssuerCollector(other.Issuers().Lister())
	if enabled.Has(clusterissuers.ControllerName) {
		common.Metrics.SetupClusterIssuerCollector(other.ClusterIssuers().Lister())
	}
	server := common.Metrics.NewServer(listener)
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		final, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return server.Shutdown(final)
	})
	return nil
}

// lead takes part in the election until ctx is done, and closes elected when this process has won. A lost lead is an error.
func lead(
	ctx context.Context,
	c *controllerConfig,
	factory *controller.ContextFactory,
	healthy *healthz.Server,
	elected chan<- struct{},
) error {
	own, err := factory.Build("leader-election")
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	lock, err := resourcelock.NewWithLabels(
		resourcelock.LeasesResourceLock,
		c.leaderElection.Namespace,
		"cert-manager-controller",
		own.Client.CoreV1(),
		own.Client.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: host, EventRecorder: own.Recorder},
		map[string]string{"app.kubernetes.io/managed-by": "cert-manager"},
	)
	if err != nil {
		return err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   c.leaderElection.LeaseDuration,
		RenewDeadline:   c.leaderElection.RenewDeadline,
		RetryPeriod:     c.leaderElection.RetryPeriod,
		ReleaseOnCancel: true,
		WatchDog:        healthy.LeaderHealthzAdaptor,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(elected) },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	if ctx.Err() == nil {
		return errors.New("leader election lost")
	}
	return nil
}

// control runs the enabled controllers until ctx is done.
func control(
	ctx context.Context,
	factory *controller.ContextFactory,
	common *controller.Context,
	enabled sets.Set[string],
) error {
	known := controller.Known()
	if unknown := enabled.Difference(sets.KeySet(known)); len(unknown) > 0 {
		return fmt.Errorf("no such controllers: %v", sets.List(unknown))
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range sets.List(enabled) {
		// All of them ask for their caches before these are filled.
		running, err := known[name](factory)
		if err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
		group.Go(func() error {
			logf.FromContext(ctx).V(logf.InfoLevel).Info("starts", "controller", name)
			return running.Run(workers, ctx)
		})
	}
	common.SharedInformerFactory.Start(ctx.Done())
	common.KubeSharedInformerFactory.Start(ctx.Done())
	common.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
	err := group.Wait()
	common.HTTP01ResourceMetadataInformersFactory.Shutdown()
	common.KubeSharedInformerFactory.Shutdown()
	common.SharedInformerFactory.Shutdown()
	return err
}
