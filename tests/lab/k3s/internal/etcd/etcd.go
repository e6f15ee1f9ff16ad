// Package etcd runs etcd as a child process.
package etcd

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

// Main runs etcd with os.Args; it does not return before etcd ends.
func Main() int {
	etcdmain.Main(os.Args)
	return 0
}
