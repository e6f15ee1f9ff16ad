package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"slipway/tests/lab/k3s/internal/bootstrap"
	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/process"
	"slipway/tests/lab/k3s/internal/snapshots"
	"slipway/tests/lab/k3s/internal/token"
)

// RestoreProgram is the name by which this program makes a data directory of etcd from a snapshot.
const RestoreProgram = "etcd-restore"

// tombstone marks the data of a member that was removed from the cluster.
const tombstone = "tombstone"

// resetFlag tells that a reset was done since the last start.
func (c *config) resetFlag() string { return c.data.Server("db", "reset-flag") }

// Reset makes this server the only member of its cluster, from its own data or from a snapshot (option
// cluster-reset-restore-path), and returns; the next start is an ordinary one.
// Errors: a server that runs, a reset since the last start, another token, no such snapshot.
func Reset(ctx context.Context, given Config) error {
	c, err := newConfig(given.Values, given.Node, given.IPs)
	if err != nil {
		return err
	}
	// The port of the API server: a server that runs holds it.
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", apiServerPort))
	if err != nil {
		return err
	}
	listener.Close()
	return c.reset(ctx, given.Group)
}

func (c *config) reset(ctx context.Context, group *process.Group) error {
	snapshot := c.values.String("cluster-reset-restore-path")
	secret, err := c.resetPassword(snapshot != "")
	if err != nil {
		return err
	}
	if snapshot == "" {
		if _, err := os.Stat(c.resetFlag()); err == nil {
			return fmt.Errorf("Managed etcd cluster membership was previously reset, please remove the cluster-reset flag and start k3s normally. If you need to perform another cluster reset, you must first manually delete the file at %s", c.resetFlag())
		}
		if !c.initialized() {
			return errors.New("cluster-reset: there is no etcd data to reset")
		}
	}
	file := datastore.File(c.etcdDirectory())
	if snapshot != "" {
		plain, err := plainSnapshot(snapshot, c.data.Server("db"))
		if err != nil {
			return err
		}
		defer os.Remove(plain)
		file = plain
	}
	// Nothing is touched before it is known that this token opens the data.
	pairs, err := datastore.ReadFile(file, bootstrap.Prefix)
	if err != nil {
		return fmt.Errorf("etcd: %s cannot be read: %w", file, err)
	}
	data, found, err := bootstrap.Find(pairs, secret)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("etcd: %s holds no cluster", file)
	}
	if err := c.backUpCertificates(); err != nil {
		return err
	}
	if err := data.Write(c.data.Server()); err != nil {
		return err
	}
	name := c.newMemberName()
	if snapshot != "" {
		if err := c.setAsideEtcd(); err != nil {
			return err
		}
		if err := process.Run(ctx, RestoreProgram, file, c.etcdDirectory(), name, c.peerURL()); err != nil {
			return fmt.Errorf("failed to restore snapshot %s: %w", snapshot, err)
		}
	}
	if err := c.writeMemberName(name); err != nil {
		return err
	}
	if err := c.resetMembers(ctx, group); err != nil {
		return err
	}
	if err := paths.WriteFile(c.resetFlag(), nil, 0o600); err != nil {
		return err
	}
	logrus.Info("Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. Backup and delete ${datadir}/server/db on each peer etcd server and rejoin the nodes")
	return nil
}

// resetPassword is the password that opens the bootstrap data: of the options, else of the token file.
func (c *config) resetPassword(restoring bool) (string, error) {
	if c.token != "" {
		return password(c.token), nil
	}
	name := c.data.Server("token")
	text, err := token.FromFile(name)
	if errors.Is(err, fs.ErrNotExist) && restoring {
		return "", fmt.Errorf("%s does not exist, please pass --token to complete the restoration", name)
	}
	return password(text), err
}

// plainSnapshot copies a snapshot to a file beside the datastore, unpacked.
func plainSnapshot(snapshot, directory string) (string, error) {
	info, err := os.Stat(snapshot)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("etcd: snapshot path does not exist: %s", snapshot)
	}
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", fmt.Errorf("etcd: snapshot path must be a file, not a directory: %s", snapshot)
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return "", err
	}
	plain := filepath.Join(directory, "restore.tmp")
	return plain, snapshots.Plain(snapshot, plain)
}

// backUpCertificates copies server/tls to server/tls-<unix seconds>.
func (c *config) backUpCertificates() error {
	if _, err := os.Stat(c.data.TLS()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return paths.CopyDirectory(c.data.TLS(), c.data.Server(fmt.Sprintf("tls-%d", time.Now().Unix())))
}

// resetMembers runs etcd as a cluster of one until it says that it is that, and stops it.
func (c *config) resetMembers(ctx context.Context, group *process.Group) error {
	all, err := ensureAuthorities(c.data)
	if err != nil {
		return err
	}
	if err := c.ensureCertificates(all); err != nil {
		return err
	}
	if err := c.startEtcd(group, etcdStart{forceNew: true}); err != nil {
		return err
	}
	defer group.End("etcd")
	self, err := c.self()
	if err != nil {
		return err
	}
	client, err := c.dialEtcd(all.etcdServer, c.etcdURL())
	if err != nil {
		return err
	}
	defer client.Close()
	return process.Poll(ctx, readyPollInterval, func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		found, err := client.MemberList(limited)
		if err != nil {
			return err
		}
		if len(found.Members) != 1 || found.Members[0].Name != self.Name {
			return fmt.Errorf("not reset yet: %v", found.Members)
		}
		// A machine that has got another address keeps its data.
		if !strings.Contains(strings.Join(found.Members[0].PeerURLs, " "), self.PeerURL) {
			_, err = client.MemberUpdate(limited, found.Members[0].ID, []string{self.PeerURL})
		}
		return err
	})
}
