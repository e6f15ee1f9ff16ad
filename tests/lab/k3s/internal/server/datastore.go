package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"slipway/tests/lab/k3s/internal/bootstrap"
	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/process"
)

const (
	dialTimeout = 5 * time.Second
	reportEvery = 5 * time.Second // while this server waits for its datastore
)

// etcdPorts are where this server's member answers; tests choose others.
type etcdPorts struct{ client, peer, metrics int }

var defaultPorts = etcdPorts{2379, 2380, 2381}

func (c *config) localEtcd() string { return fmt.Sprintf("127.0.0.1:%d", c.ports.client) }
func (c *config) etcdURL() string   { return "https://" + c.localEtcd() }
func (c *config) peerURL() string   { return fmt.Sprintf("https://%s:%d", c.ip, c.ports.peer) }

// etcdDirectory is the data directory of this server's member.
func (c *config) etcdDirectory() string { return c.data.Server("db", "etcd") }

// self is this server's member. The name is made when it is first asked for.
func (c *config) self() (datastore.Self, error) {
	name, err := c.memberName()
	return datastore.Self{Name: name, Node: c.node, PeerURL: c.peerURL()}, err
}

// setAsideRemoved moves the data of a member that was removed from the cluster out of the way, so that this server
// joins as a new one.
func (c *config) setAsideRemoved() error {
	if _, err := os.Stat(filepath.Join(c.etcdDirectory(), tombstone)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	logrus.Info("tombstone file has been detected, removing data dir to rejoin the cluster")
	return c.setAsideEtcd()
}

// setAsideEtcd renames the data directory of etcd to etcd-old-<unix seconds>.
func (c *config) setAsideEtcd() error {
	err := os.Rename(c.etcdDirectory(), fmt.Sprintf("%s-old-%d", c.etcdDirectory(), time.Now().Unix()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// reconcile makes the shared files those of the datastore, which is read while etcd does not run. Files that are newer
// than the datastore's end the start. A token that does not fit is found later, when the files are saved.
func (c *config) reconcile() error {
	logrus.Info("Reconciling bootstrap data between datastore and disk")
	pairs, err := datastore.ReadFile(datastore.File(c.etcdDirectory()), bootstrap.Prefix)
	if err != nil {
		return fmt.Errorf("failed to read the datastore: %w", err)
	}
	given, err := c.knownPassword()
	if err != nil {
		return err
	}
	data, found, err := bootstrap.Find(pairs, given)
	if errors.Is(err, bootstrap.ErrOtherToken) || !found {
		return nil
	}
	if err != nil {
		return err
	}
	return data.Reconcile(c.data.Server())
}

// knownPassword is the server's password: of the options, else of the last start; empty where there is none yet.
func (c *config) knownPassword() (string, error) {
	if c.token != "" {
		return password(c.token), nil
	}
	known, err := readPasswords(c.data.Server("cred", "passwd"))
	return known["server"], err
}

// startDatastore starts etcd, as the first member or as one more, waits until this server votes, and keeps the
// bootstrap data in it. The client is for the local member.
func (c *config) startDatastore(ctx context.Context, group *process.Group, all *authorities, password string) (*clientv3.Client, error) {
	initial := ""
	switch {
	case c.initialized():
		logrus.Info("Managed etcd cluster bootstrap already complete and initialized")
	case c.remote != nil:
		logrus.Info("Managed etcd cluster not yet initialized")
		var err error
		if initial, err = c.joinEtcd(ctx, all.etcdServer); err != nil {
			return nil, fmt.Errorf("joining etcd cluster: %w", err)
		}
	default:
		logrus.Info("Managed etcd cluster initializing")
	}
	if err := c.startEtcd(group, etcdStart{cluster: initial}); err != nil {
		return nil, err
	}
	client, err := c.waitForEtcd(ctx, all.etcdServer)
	if err != nil {
		return nil, err
	}
	if err := c.saveBootstrap(ctx, client, password); err != nil {
		client.Close()
		return nil, fmt.Errorf("starting kubernetes: preparing server: failed to save bootstrap data: %w", err)
	}
	members, err := client.MemberList(ctx)
	if err != nil {
		client.Close()
		return nil, err
	}
	c.elect.Store(len(members.Members) > 1)
	logrus.Info("ETCD server is now running")
	return client, nil
}

// dialEtcd makes a client for members of the cluster.
func (c *config) dialEtcd(ca *pki.CA, endpoints ...string) (*clientv3.Client, error) {
	settings, err := c.etcdClient(ca, endpoints...)
	if err != nil {
		return nil, err
	}
	return clientv3.New(settings)
}

func (c *config) etcdClient(ca *pki.CA, endpoints ...string) (clientv3.Config, error) {
	certificate, err := tls.LoadX509KeyPair(c.data.TLS("etcd", "client.crt"), c.data.TLS("etcd", "client.key"))
	if err != nil {
		return clientv3.Config{}, err
	}
	roots, err := pki.Pool(ca.PEM)
	if err != nil {
		return clientv3.Config{}, err
	}
	return clientv3.Config{
		Endpoints: endpoints, DialTimeout: dialTimeout, Logger: zap.NewNop(),
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{certificate}},
	}, nil
}

// waitForEtcd waits until the local member votes and returns a client for it.
func (c *config) waitForEtcd(ctx context.Context, ca *pki.CA) (*clientv3.Client, error) {
	// The client would log each attempt that comes too early.
	dialer := &net.Dialer{}
	err := process.Poll(ctx, readyPollInterval, func(ctx context.Context) error {
		connection, err := dialer.DialContext(ctx, "tcp", c.localEtcd())
		if err != nil {
			return err
		}
		return connection.Close()
	})
	if err != nil {
		return nil, err
	}
	self, err := c.self()
	if err != nil {
		return nil, err
	}
	client, err := c.dialEtcd(ca, c.etcdURL())
	if err != nil {
		return nil, err
	}
	reported := time.Now()
	err = process.Poll(ctx, readyPollInterval, func(ctx context.Context) error {
		err := datastore.Check(ctx, client, self)
		if err != nil && time.Since(reported) > reportEvery {
			reported = time.Now()
			logrus.Infof("Failed to test data store connection: %v", err)
		}
		return err
	})
	if err != nil {
		client.Close()
		return nil, err
	}
	logrus.Info("etcd data store connection OK")
	return client, nil
}

// saveBootstrap keeps what other servers need in the datastore, encrypted with the token. A server that joins brings
// nothing of its own. Errors: bootstrap.ErrOtherToken when the cluster was made with another token.
func (c *config) saveBootstrap(ctx context.Context, client *clientv3.Client, password string) error {
	found, err := client.Get(ctx, bootstrap.Prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	pairs := map[string][]byte{}
	for _, pair := range found.Kvs {
		pairs[string(pair.Key)] = pair.Value
	}
	saved, exists, err := bootstrap.Find(pairs, password)
	if err != nil {
		return err
	}
	data, err := bootstrap.Collect(c.data.Server())
	if err != nil {
		return err
	}
	if exists && (c.remote != nil || data.Equal(saved)) {
		return nil
	}
	return c.putBootstrap(ctx, client, password)
}

// putBootstrap saves the shared files as they are.
func (c *config) putBootstrap(ctx context.Context, client *clientv3.Client, password string) error {
	data, err := bootstrap.Collect(c.data.Server())
	if err != nil {
		return err
	}
	sealed, err := data.Seal(password)
	if err != nil {
		return err
	}
	_, err = client.Put(ctx, bootstrap.Key(password), string(sealed))
	return err
}

// markRemoved leaves the tombstone when etcd has ended by itself: the others have removed this member.
func (c *config) markRemoved(exit error) {
	if exit != nil {
		return
	}
	logrus.Info("this node has been removed from the cluster please restart k3s to rejoin the cluster")
	if err := paths.WriteFile(filepath.Join(c.etcdDirectory(), tombstone), nil, 0o600); err != nil {
		logrus.Errorf("Failed to write the tombstone of etcd: %v", err)
	}
}
