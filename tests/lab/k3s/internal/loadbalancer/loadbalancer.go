// Package loadbalancer forwards TCP connections of an agent to one of the servers it knows.
package loadbalancer

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"slipway/tests/lab/k3s/internal/paths"
)

const dialTimeout = 3 * time.Second

// Balancer listens on a local port. The first server that answered last is tried first.
type Balancer struct {
	file     string
	listener net.Listener
	mutex    sync.Mutex
	state    state
}

// state is what is kept over restarts, so that an agent finds the cluster when the server of its configuration is gone.
type state struct {
	ServerURL       string
	ServerAddresses []string
}

// Start listens on 127.0.0.1:port and forwards to the server of the configuration and those learnt before.
func Start(port int, serverURL, address, file string) (*Balancer, error) {
	b := &Balancer{file: file, state: state{ServerURL: serverURL, ServerAddresses: []string{address}}}
	if content, err := os.ReadFile(file); err == nil {
		var saved state
		// What was learnt belongs to the cluster of that URL only.
		if err := json.Unmarshal(content, &saved); err == nil && saved.ServerURL == serverURL {
			for _, known := range saved.ServerAddresses {
				if !slices.Contains(b.state.ServerAddresses, known) {
					b.state.ServerAddresses = append(b.state.ServerAddresses, known)
				}
			}
		}
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("load balancer: %w", err)
	}
	b.listener = listener
	logrus.Infof("Running load balancer k3s-agent-load-balancer %s -> %v", listener.Addr(), b.state.ServerAddresses)
	go b.serve()
	return b, b.save()
}

// URL is the address of the balancer itself.
func (b *Balancer) URL() string { return "https://" + b.listener.Addr().String() }

// Set replaces the known servers. An empty list is ignored: it would cut the agent off.
func (b *Balancer) Set(addresses []string) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	sorted := slices.Sorted(slices.Values(addresses))
	if len(sorted) == 0 || slices.Equal(sorted, slices.Sorted(slices.Values(b.state.ServerAddresses))) {
		return nil
	}
	logrus.Infof("Updated load balancer k3s-agent-load-balancer server addresses -> %v", sorted)
	b.state.ServerAddresses = sorted
	return b.save()
}

func (b *Balancer) save() error {
	content, err := json.Marshal(b.state)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.file), 0o755); err != nil {
		return err
	}
	return paths.WriteFile(b.file, content, 0o600)
}

func (b *Balancer) serve() {
	for {
		client, err := b.listener.Accept()
		if err != nil {
			return
		}
		go b.forward(client)
	}
}

func (b *Balancer) forward(client net.Conn) {
	defer client.Close()
	server, err := b.dial()
	if err != nil {
		logrus.Debugf("Load balancer: %v", err)
		return
	}
	defer server.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		io.Copy(to, from)
		done <- struct{}{}
	}
	go pipe(server, client)
	go pipe(client, server)
	<-done
}

// dial tries the servers in turn and remembers the one that answered.
func (b *Balancer) dial() (net.Conn, error) {
	b.mutex.Lock()
	addresses := slices.Clone(b.state.ServerAddresses)
	b.mutex.Unlock()
	var last error
	for _, address := range addresses {
		connection, err := net.DialTimeout("tcp", address, dialTimeout)
		if err == nil {
			b.prefer(address)
			return connection, nil
		}
		last = err
	}
	return nil, last
}

func (b *Balancer) prefer(address string) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if at := slices.Index(b.state.ServerAddresses, address); at > 0 {
		b.state.ServerAddresses = slices.Insert(slices.Delete(b.state.ServerAddresses, at, at+1), 0, address)
	}
}
