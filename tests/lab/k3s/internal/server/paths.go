package server

import (
	"encoding/json"
	"net/http"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"

	"slipway/tests/lab/k3s/internal/bootstrap"
	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/datastore"
)

// store is the client for the datastore, once that answers.
type store struct {
	client atomic.Pointer[clientv3.Client]
}

// serverPaths are the supervisor's paths for other servers and for administrators.
func (c *config) serverPaths(store *store) map[string]http.HandlerFunc {
	// Until the datastore answers, only what is on the disk can be told.
	needsStore := func(handle func(http.ResponseWriter, *http.Request, *clientv3.Client)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if client := store.client.Load(); client != nil {
				handle(w, r, client)
				return
			}
			http.Error(w, "datastore not ready", http.StatusServiceUnavailable)
		}
	}
	return map[string]http.HandlerFunc{
		"GET " + cluster.PathBootstrap:   needsStore(c.serveBootstrap),
		"GET " + cluster.PathDBInfo:      needsStore(serveInfo),
		"POST " + cluster.PathDBSnapshot: needsStore(c.serveSnapshot),
		"PUT " + cluster.PathToken:       needsStore(c.serveToken),
	}
}

// serveBootstrap gives a server that joins what all servers share.
func (c *config) serveBootstrap(w http.ResponseWriter, _ *http.Request, _ *clientv3.Client) {
	data, err := bootstrap.Collect(c.data.Server())
	answer(w, data, err)
}

// serveInfo tells the members of etcd.
func serveInfo(w http.ResponseWriter, r *http.Request, client *clientv3.Client) {
	found, err := client.MemberList(r.Context())
	if err != nil {
		answer(w, nil, err)
		return
	}
	answer(w, datastore.Info{Members: found.Members}, nil)
}

// answer sends a value as JSON, or the error.
func answer(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}
