package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"slipway/tests/lab/k3s/internal/bootstrap"
	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	joinRetry   = 5 * time.Second
	joinTimeout = 20 * time.Second
)

// critical are the options that have to be equal on all servers (k3s docs, cli/server). Tokens are not among them:
// nobody may read them here.
func (c *config) critical() map[string]string {
	critical := map[string]string{
		"cluster-cidr":      join(c.settings.ClusterCIDR),
		"service-cidr":      join(c.settings.ServiceCIDR),
		"cluster-dns":       join(c.settings.ClusterDNS),
		"disable=servicelb": strconv.FormatBool(c.disabled("servicelb")),
	}
	for _, name := range []string{"cluster-domain", "flannel-backend", "egress-selector-mode", "secrets-encryption-provider"} {
		critical[name] = c.values.String(name)
	}
	for _, name := range []string{"disable-cloud-controller", "disable-helm-controller", "disable-network-policy", "secrets-encryption"} {
		critical[name] = strconv.FormatBool(c.values.Bool(name))
	}
	return critical
}

// bootstrapFromServer takes from the server that option server names what all servers share.
// Errors: unreachable, a token of another cluster, critical options that differ, files of an older installation.
func (c *config) bootstrapFromServer(ctx context.Context) error {
	address := c.values.String("server")
	joinToken, err := token.Parse(c.token)
	if err != nil {
		return fmt.Errorf("failed to normalize token: %w", err)
	}
	// Whatever token is given, a server identifies itself as one.
	joinToken.User = cluster.UserServer
	remote, err := cluster.Dial(ctx, strings.TrimSuffix(address, "/"), joinToken)
	if err != nil {
		return fmt.Errorf("failed to validate token: %w", err)
	}
	if err := c.compareCritical(ctx, remote); err != nil {
		return fmt.Errorf("failed to validate server configuration: %w", err)
	}
	body, err := remote.Request(ctx, http.MethodGet, cluster.PathBootstrap, nil, nil)
	if err != nil {
		return err
	}
	var data bootstrap.Data
	if err := json.Unmarshal(body, &data); err != nil {
		return err
	}
	c.remote = remote
	return data.Reconcile(c.data.Server())
}

// compareCritical compares the critical options with those of the cluster; one that the other side does not know is
// left out: it may be of another version.
func (c *config) compareCritical(ctx context.Context, remote *cluster.Client) error {
	body, err := remote.Request(ctx, http.MethodGet, cluster.PathSettings, nil, nil)
	if err != nil {
		return err
	}
	var theirs cluster.Settings
	if err := json.Unmarshal(body, &theirs); err != nil {
		return err
	}
	var differing []string
	for _, name := range slices.Sorted(maps.Keys(c.settings.Critical)) {
		if value, known := theirs.Critical[name]; known && value != c.settings.Critical[name] {
			differing = append(differing, name)
		}
	}
	if len(differing) > 0 {
		return fmt.Errorf("critical configuration value mismatch between servers: %s", strings.Join(differing, ", "))
	}
	return nil
}

// joinEtcd makes this server a learner of the cluster and returns the cluster in the form that etcd wants. While
// another server joins it waits.
func (c *config) joinEtcd(ctx context.Context, ca *pki.CA) (string, error) {
	self, err := c.self()
	if err != nil {
		return "", err
	}
	for {
		initial, err := c.tryJoin(ctx, ca, self)
		switch {
		case err == nil:
			return initial, nil
		case errors.Is(err, datastore.ErrDuplicate):
			// Whatever name comes next time is made anew.
			os.Remove(filepath.Join(c.etcdDirectory(), "name"))
			return "", err
		case errors.Is(err, rpctypes.ErrTooManyLearners), errors.Is(err, rpctypes.ErrUnhealthy):
			logrus.Infof("Waiting for other members to finish joining etcd cluster: %v", err)
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			logrus.Infof("Waiting to retrieve etcd cluster member list: %v", err)
		default:
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(joinRetry):
		}
	}
}

func (c *config) tryJoin(ctx context.Context, ca *pki.CA, self datastore.Self) (string, error) {
	limited, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	body, err := c.remote.Request(limited, http.MethodGet, cluster.PathDBInfo, nil, nil)
	if err != nil {
		return "", err
	}
	var info datastore.Info
	if err := json.Unmarshal(body, &info); err != nil {
		return "", err
	}
	client, err := c.dialEtcd(ca, info.VoterURLs()...)
	if err != nil {
		return "", err
	}
	defer client.Close()
	return datastore.Join(limited, client, self)
}
