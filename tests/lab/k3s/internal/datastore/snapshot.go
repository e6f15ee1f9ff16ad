package datastore

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
)

// Save writes a snapshot of the member that a configuration names to a file, with a checksum at its end.
// Errors: the member does not answer, the disk is full; no half-written file stays under that name.
func Save(ctx context.Context, config clientv3.Config, file string) error {
	config.Logger = zap.NewNop()
	_, err := snapshot.SaveWithVersion(ctx, zap.NewNop(), config, file)
	return err
}
