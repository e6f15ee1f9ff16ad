// Package server runs the control plane side of k3s.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"slipway/tests/lab/k3s/internal/agent"
	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/deploy"
	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/process"
	"slipway/tests/lab/k3s/internal/supervisor"
	"slipway/tests/lab/k3s/internal/token"
)

// Config is what a server is started with.
type Config struct {
	Values      *options.Values
	Group       *process.Group
	Images      map[string]string // references of the packaged images
	TraefikCRDs string            // the kinds that Traefik defines, as YAML
	Node        string
	IPs         []string
	// Ready is called once etcd and the API server are up.
	Ready func()
}

// Run starts the components of a server. It returns when they run; errors end the server.
func Run(ctx context.Context, given Config) error {
	c, err := newConfig(given.Values, given.Node, given.IPs)
	if err != nil {
		return err
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	all, err := ensureAuthorities(c.data)
	if err != nil {
		return err
	}
	if err := c.ensureCertificates(all); err != nil {
		return err
	}
	passwords, err := c.ensurePasswords()
	if err != nil {
		return fmt.Errorf("preparing server: %w", err)
	}
	encryption, err := c.ensureEncryption()
	if err != nil {
		return err
	}
	rest, err := clientcmd.BuildConfigFromFlags("", c.data.Server("cred", "supervisor.kubeconfig"))
	if err != nil {
		return err
	}
	// Endpoints are deprecated, but older clients still read those of the API server.
	rest.WarningHandler = restclient.NoWarnings{}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return err
	}
	follower := &nodes{config: c, client: client, store: &store{}}
	c.taker = c.newTaker(all.etcdServer)
	var ready atomic.Bool
	secrets := &encrypter{config: c, nodes: follower, lifetime: ctx, reload: func() error {
		return c.reloadAPIServer(ctx, given.Group, encryption, all.server)
	}}
	if err := c.listen(ctx, given.Group, all, passwords, follower, &ready, secrets.paths()); err != nil {
		return err
	}
	if err := c.writeTokens(all.server.PEM, passwords); err != nil {
		return err
	}
	if !c.values.Bool("disable-agent") {
		c.startAgent(ctx, given, passwords[cluster.UserServer], all.server.PEM)
	}
	etcd, err := c.startDatastore(ctx, given.Group, all, passwords[cluster.UserServer])
	if err != nil {
		return err
	}
	follower.store.client.Store(etcd)
	if err := c.startAPIServer(given.Group, encryption); err != nil {
		return err
	}
	logrus.Info("Waiting for API server to become available")
	if err := c.waitForAPIServer(ctx, all.server); err != nil {
		return err
	}
	logrus.Info("Kube API server is now running")
	if err := c.startControllers(given.Group); err != nil {
		return err
	}
	if err := follower.finishReset(ctx); err != nil {
		return err
	}
	go datastore.Announce(ctx, etcd, c.endpoint())
	if err := follower.writeEndpoints(ctx); err != nil {
		return err
	}
	if err := c.startDeployer(ctx, given); err != nil {
		return err
	}
	go follower.run(ctx)
	go follower.keepMembers(ctx, func() error { return c.shareControllers(given.Group) })
	if err := c.scheduleSnapshots(ctx); err != nil {
		return err
	}
	if !c.disabled("servicelb") {
		go newServiceLB(client).run(ctx)
	}
	if err := c.writeAdminKubeconfig(all); err != nil {
		return err
	}
	ready.Store(true)
	logrus.Infof("To join node to cluster: k3s agent -s https://%s:%d -t ${NODE_TOKEN}", c.advertise, c.port)
	logrus.Info("k3s is up and running")
	given.Ready()
	return nil
}

// listen opens the server's port and serves it.
func (c *config) listen(ctx context.Context, group *process.Group, all *authorities, passwords map[string]string, follower *nodes, ready *atomic.Bool, more map[string]http.HandlerFunc) error {
	serving, err := tls.LoadX509KeyPair(c.data.TLS("serving-k3s.crt"), c.data.TLS("serving-k3s.key"))
	if err != nil {
		return err
	}
	front, err := tls.LoadX509KeyPair(c.data.TLS("client-auth-proxy.crt"), c.data.TLS("client-auth-proxy.key"))
	if err != nil {
		return err
	}
	own := c.serverPaths(follower.store)
	maps.Copy(own, more)
	handler, err := supervisor.New(supervisor.Config{
		ServerCA: all.server, ClientCA: all.client, Serving: serving, FrontProxy: front,
		APIServer: fmt.Sprintf("127.0.0.1:%d", apiServerPort), Passwords: passwords, Settings: c.settings,
		StaticDir:           c.data.Server("static"),
		CheckBootstrapToken: follower.checkBootstrapToken,
		CheckNodePassword:   follower.checkPassword,
		APIServers:          follower.apiServers,
		Ready:               ready.Load,
		Servers:             own,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", c.bind, c.port))
	if err != nil {
		return err
	}
	go func() {
		if err := handler.Serve(ctx, listener); err != nil {
			group.Fail(fmt.Errorf("supervisor: %w", err))
		}
	}()
	return nil
}

// prepare puts in place what servers share: from the server that this one joins, or as the datastore has it.
func (c *config) prepare(ctx context.Context) error {
	if err := c.setAsideRemoved(); err != nil {
		return err
	}
	if c.initialized() {
		if err := checkGivenToken(c.token, c.data.TLS("server-ca.crt")); err != nil {
			return err
		}
		return c.reconcile()
	}
	if c.values.String("server") == "" {
		return checkGivenToken(c.token, c.data.TLS("server-ca.crt"))
	}
	if c.token == "" {
		return errors.New("starting kubernetes: preparing server: K3S_TOKEN is required to join a cluster")
	}
	if err := c.bootstrapFromServer(ctx); err != nil {
		return fmt.Errorf("starting kubernetes: preparing server: failed to bootstrap cluster data: %w", err)
	}
	return nil
}

// startAgent starts the node side beside the server; it waits by itself until the server can be asked.
func (c *config) startAgent(ctx context.Context, given Config, password string, ca []byte) {
	joinToken := token.Token{Hash: token.HashCA(ca), User: cluster.UserServer, Password: password}
	go func() {
		err := agent.Run(ctx, agent.Config{
			Values: given.Values, Group: given.Group, Images: given.Images, Token: joinToken.Secure(), Node: given.Node, IPs: given.IPs,
			LocalServer: fmt.Sprintf("https://127.0.0.1:%d", c.port),
		})
		if err != nil && ctx.Err() == nil {
			given.Group.Fail(err)
		}
	}()
}

// startDeployer writes the manifests of the packaged components and applies the directory from now on.
func (c *config) startDeployer(ctx context.Context, given Config) error {
	directory := c.data.Server("manifests")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	removed, err := deploy.WritePackaged(directory, deploy.Variables{
		ClusterDNS: c.settings.ClusterDNS, ClusterDomain: c.settings.ClusterDomain, LocalStoragePath: c.localStorage(),
		Images: given.Images, TraefikCRDs: given.TraefikCRDs,
	}, c.values.SplitList("disable"))
	if err != nil {
		return err
	}
	rest, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.data.Server("cred"), "supervisor.kubeconfig"))
	if err != nil {
		return err
	}
	rest.QPS, rest.Burst = 50, 100
	deployer, err := deploy.New(rest, directory, c.node)
	if err != nil {
		return err
	}
	go deployer.Run(ctx, removed)
	return nil
}
