// Package flanneld is a flannel daemon with the backends vxlan and host-gw only: flannel's own main imports a cloud
// backend whose module cannot be had.
package flanneld

import (
	"context"
	"flag"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // backend host-gw
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // backend vxlan
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/sirupsen/logrus"
)

const (
	annotationPrefix = "flannel.alpha.coreos.com"
	resyncSeconds    = 5
)

// Main runs flannel until SIGTERM and returns the exit code. Env: NODE_NAME.
// Flags: -kubeconfig, -net-conf, -subnet-file, -iface (name or address).
func Main() int {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig file")
	netConf := flag.String("net-conf", "", "network configuration (JSON)")
	subnetFile := flag.String("subnet-file", "", "file to write once the network is up")
	external := flag.String("iface", "", "name or address of the interface to the other nodes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *netConf, *subnetFile, *external); err != nil {
		logrus.Errorf("flannel exited: %v", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, kubeconfig, netConf, subnetFile, external string) error {
	manager, err := kube.NewSubnetManager(ctx, "", kubeconfig, annotationPrefix, netConf, false)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	link, err := ipmatch.LookupExtIface(external, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return err
	}
	engine, err := backend.NewManager(ctx, manager, link).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	network, err := engine.RegisterNetwork(ctx, &running, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	rules := &iptables.IPTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	err = rules.SetupAndEnsureMasqRules(ctx, config.Network, ip.IP4Net{}, ip.IP4Net{}, config.IPv6Network, ip.IP6Net{}, ip.IP6Net{}, lease, resyncSeconds, false)
	if err != nil {
		return err
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resyncSeconds)
	if err := manager.HandleSubnetFile(subnetFile, config, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	logrus.Infof("Flannel network up: %s %s", config.BackendType, lease.Subnet)
	network.Run(ctx)
	running.Wait()
	return nil
}
