package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"

	"slipway/tests/lab/k3s/internal/bootstrap"
	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/token"
)

// serveToken does what `k3s token rotate` asks for.
func (c *config) serveToken(w http.ResponseWriter, r *http.Request, client *clientv3.Client) {
	var request cluster.TokenRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestLimit)).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, struct{}{}, c.rotateToken(r.Context(), client, request.NewToken))
}

// rotateToken makes another token that of the cluster: in the datastore and in this server's files. Servers go on with
// the old one until they start anew. Errors: a token in the bootstrap form, or of another cluster.
func (c *config) rotateToken(ctx context.Context, client *clientv3.Client, given string) error {
	parsed, err := token.Parse(given)
	if err != nil {
		return err
	}
	if parsed.ID != "" {
		return errors.New("new token must not be in bootstrap token format")
	}
	ca, err := os.ReadFile(c.data.TLS("server-ca.crt"))
	if err != nil {
		return err
	}
	if err := parsed.CheckCA(ca); err != nil {
		return err
	}
	known, err := readPasswords(c.data.Server("cred", "passwd"))
	if err != nil {
		return err
	}
	old, fresh := known[cluster.UserServer], parsed.Password
	found, err := client.Get(ctx, bootstrap.Key(old))
	if err != nil {
		return err
	}
	if len(found.Kvs) == 0 {
		return bootstrap.ErrOtherToken
	}
	node := known[cluster.UserNode]
	if node == old {
		// Without a token of their own, agents use the servers'.
		node = fresh
	}
	passwords := map[string]string{cluster.UserServer: fresh, cluster.UserNode: node}
	if err := c.writePasswords(passwords); err != nil {
		return err
	}
	data, err := bootstrap.Collect(c.data.Server())
	if err != nil {
		return err
	}
	sealed, err := data.Seal(fresh)
	if err != nil {
		return err
	}
	// Both at once: a datastore with two tokens, or none, would let no server start.
	operations := []clientv3.Op{clientv3.OpPut(bootstrap.Key(fresh), string(sealed))}
	if fresh != old {
		operations = append(operations, clientv3.OpDelete(bootstrap.Key(old)))
	}
	if _, err := client.Txn(ctx).Then(operations...).Commit(); err != nil {
		return errors.Join(err, c.writePasswords(known))
	}
	return c.writeTokens(ca, passwords)
}
