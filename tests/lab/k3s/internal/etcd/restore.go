package etcd

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// Restore makes the data directory of a cluster with one member from a snapshot.
// Errors: a snapshot whose checksum is wrong, a directory that is there already.
func Restore(file, directory, name, peerURL string) error {
	return snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: name, OutputDataDir: directory, PeerURLs: []string{peerURL},
		InitialCluster: name + "=" + peerURL, InitialClusterToken: "etcd-cluster",
	})
}

// RestoreMain runs Restore with the arguments of a process: file, directory, name, URL for peers.
func RestoreMain() int {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: etcd-restore SNAPSHOT DIRECTORY NAME PEER-URL")
		return 2
	}
	if err := Restore(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
