package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/snapshots"
)

const requestLimit = 64 << 10 // bytes

// newTaker takes snapshots of the local member.
func (c *config) newTaker(ca *pki.CA) *snapshots.Taker {
	return &snapshots.Taker{Take: func(ctx context.Context, file string) error {
		settings, err := c.etcdClient(ca, c.etcdURL())
		if err != nil {
			return err
		}
		return datastore.Save(ctx, settings, file)
	}}
}

// snapshotStore is the store in a directory; empty: that of the options.
func (c *config) snapshotStore(directory string) snapshots.Store {
	if directory == "" {
		directory = c.values.String("etcd-snapshot-dir")
	}
	usual := c.data.Server("db", "snapshots")
	if directory == "" {
		directory = usual
	}
	return snapshots.Store{Directory: directory, Create: directory == usual, Node: c.node, Taker: c.taker}
}

// scheduleSnapshots takes snapshots at the times of the options, each server its own. Errors: a bad expression.
func (c *config) scheduleSnapshots(ctx context.Context) error {
	if c.values.Bool("etcd-disable-snapshots") {
		return nil
	}
	return snapshots.Schedule(ctx, c.values.String("etcd-snapshot-schedule-cron"), func() {
		kept := c.snapshotStore("")
		name := c.values.String("etcd-snapshot-name")
		file, err := kept.Save(ctx, name, c.values.Bool("etcd-snapshot-compress"), time.Now())
		if err == nil {
			logrus.Infof("Snapshot %s saved.", file.Name)
			_, err = kept.Prune(name, c.values.Int("etcd-snapshot-retention"))
		}
		if err != nil {
			logrus.Errorf("Failed to take scheduled snapshot: %v", err)
		}
	})
}

// serveSnapshot does what `k3s etcd-snapshot` asks for.
func (c *config) serveSnapshot(w http.ResponseWriter, r *http.Request, _ *clientv3.Client) {
	var request cluster.SnapshotRequest
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, requestLimit))
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	result, err := c.snapshot(r.Context(), request)
	answer(w, result, err)
}

func (c *config) snapshot(ctx context.Context, request cluster.SnapshotRequest) (result cluster.SnapshotResult, err error) {
	kept := c.snapshotStore(request.Directory)
	switch request.Operation {
	case cluster.SnapshotSave:
		file, err := kept.Save(ctx, request.Name, request.Compress || c.values.Bool("etcd-snapshot-compress"), time.Now())
		if err != nil {
			return result, err
		}
		result.Created = []string{file.Name}
	case cluster.SnapshotList:
		result.Files, err = kept.List()
	case cluster.SnapshotDelete:
		result.Deleted, err = kept.Delete(request.Names)
	case cluster.SnapshotPrune:
		result.Deleted, err = kept.Prune(request.Name, request.Retention)
	default:
		err = fmt.Errorf("invalid snapshot operation %q", request.Operation)
	}
	return result, err
}
