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

// EncryptionRequest is what `k3s secrets-encrypt` sends to change something.
type EncryptionRequest struct {
	Action string
	Force  bool // whatever the stage and the other servers
	Skip   bool // keep the keys that encrypt nothing any more
}

// EncryptionStatus is how a server encrypts Secrets; Enable is nil without a configuration.
type EncryptionStatus struct {
	Stage        string   `json:"stage"`
	ActiveKey    string   `json:"activekey"`
	Enable       *bool    `json:"enable,omitempty"`
	HashMatch    bool     `json:"hashmatch,omitempty"`
	HashError    string   `json:"hasherror,omitempty"`
	InactiveKeys []string `json:"inactivekeys,omitempty"`
}
