package datastore

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	addressPrefix = "/k3s/apiaddresses/"
	// As long as the API server keeps an address of its own that is no longer renewed.
	addressTTL   = 15 // seconds
	announceWait = 2 * time.Second
)

// Announce keeps the address of this server's port (host:port) among those of the cluster until the context ends. It
// vanishes at a stop at once, and some seconds after a server that died.
func Announce(ctx context.Context, client *clientv3.Client, address string) {
	for ctx.Err() == nil {
		if err := announceOnce(ctx, client, address); err != nil && ctx.Err() == nil {
			logrus.Errorf("Failed to announce this server: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(announceWait):
		}
	}
}

// announceOnce announces the address for as long as its lease lives.
func announceOnce(ctx context.Context, client *clientv3.Client, address string) error {
	lease, err := client.Grant(ctx, addressTTL)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, addressPrefix+address, "", clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	renewed, err := client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	for range renewed {
	}
	if ctx.Err() == nil {
		return nil
	}
	// etcd stops after what uses it, so that there is a moment for this.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
	defer cancel()
	_, err = client.Revoke(limited, lease.ID)
	return err
}

// WatchAddresses tells when servers come and go.
func WatchAddresses(ctx context.Context, client *clientv3.Client) clientv3.WatchChan {
	return client.Watch(clientv3.WithRequireLeader(ctx), addressPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
}

// Addresses lists the ports of the servers that live, sorted.
func Addresses(ctx context.Context, client *clientv3.Client) ([]string, error) {
	found, err := client.Get(ctx, addressPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, pair := range found.Kvs {
		addresses = append(addresses, strings.TrimPrefix(string(pair.Key), addressPrefix))
	}
	slices.Sort(addresses)
	return addresses, nil
}
