package cluster

import "slipway/tests/lab/k3s/internal/snapshots"

// Operations on snapshots.
const (
	SnapshotSave   = "save"
	SnapshotList   = "list"
	SnapshotDelete = "delete"
	SnapshotPrune  = "prune"
)

// SnapshotRequest is what `k3s etcd-snapshot` asks of the server beside it.
type SnapshotRequest struct {
	Operation string
	Directory string   // empty: that of the server's options
	Name      string   // of a new snapshot, or prefix of those to prune
	Names     []string // of those to delete
	Compress  bool
	Retention int
}

// SnapshotResult is the answer.
type SnapshotResult struct {
	Created, Deleted []string         `json:",omitempty"`
	Files            []snapshots.File `json:",omitempty"`
}

// TokenRequest is what `k3s token rotate` sends.
type TokenRequest struct{ NewToken string }
