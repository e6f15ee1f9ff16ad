// Package etcdtest runs members of etcd inside a test.
package etcdtest

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const startLimit = 60 * time.Second // on a busy machine

// Member is a member on 127.0.0.1.
type Member struct {
	Name, Directory    string
	PeerURL, ClientURL string
	Etcd               *embed.Etcd
	stop               func()
}

// New names a member, with free ports and a directory of its own.
func New(t *testing.T, name string) *Member {
	t.Helper()
	ports := Ports(t, 2)
	address := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	return &Member{Name: name, Directory: filepath.Join(t.TempDir(), "etcd"), PeerURL: address(ports[0]), ClientURL: address(ports[1])}
}

// Ports finds free ports of 127.0.0.1.
func Ports(t *testing.T, number int) []int {
	t.Helper()
	var ports []int
	for range number {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		// Open until all are found, so that they differ.
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// Start starts the member with a cluster as etcd writes it (name=URL,...); empty: a new cluster of its own.
// A joining member is not ready before the others know it, so Start waits only for new clusters and known members.
func (m *Member) Start(t *testing.T, initialCluster string) {
	t.Helper()
	config := embed.NewConfig()
	config.Name, config.Dir, config.ZapLoggerBuilder = m.Name, m.Directory, embed.NewZapLoggerBuilder(zap.NewNop())
	peer, client := m.parse(t, m.PeerURL), m.parse(t, m.ClientURL)
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.InitialCluster, config.UnsafeNoFsync = m.Name+"="+m.PeerURL, true
	if initialCluster != "" {
		config.InitialCluster, config.ClusterState = initialCluster, embed.ClusterStateFlagExisting
	}
	started, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	m.Etcd, m.stop = started, sync.OnceFunc(started.Close)
	t.Cleanup(m.stop)
	select {
	case <-started.Server.ReadyNotify():
	case <-time.After(startLimit):
		t.Fatal("not ready: ", m.Name)
	}
}

// Stop stops the member.
func (m *Member) Stop() { m.stop() }

// Client is a client for this member only.
func (m *Member) Client(t *testing.T) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.ClientURL}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func (m *Member) parse(t *testing.T, text string) url.URL {
	t.Helper()
	parsed, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return *parsed
}
