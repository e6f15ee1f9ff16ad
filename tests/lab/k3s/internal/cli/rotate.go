package cli

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	localServer     = "https://127.0.0.1:6443"
	rotationWarning = "WARNING: Recommended to keep a record of the old token. If restoring from a snapshot, you must use the token associated with that snapshot."
	secretBytes     = 16 // of a token that nobody chose
)

// administrator makes a client for a server's own paths. Without a token it reads the one of the server beside it.
func administrator(ctx context.Context, server, given, data string) (*cluster.Client, error) {
	if given == "" {
		var err error
		if given, err = token.FromFile(paths.Data(data).Server("token")); err != nil {
			return nil, err
		}
	}
	parsed, err := token.Parse(given)
	if err != nil {
		return nil, err
	}
	parsed.User = cluster.UserServer
	if _, err := cluster.ParseServerURL(server); err != nil {
		return nil, err
	}
	return cluster.Dial(ctx, server, parsed)
}

// ask sends a request to a path of a server and reads the answer, if one is wanted.
// Errors carry what the server says.
func ask(ctx context.Context, client *cluster.Client, method, path string, request, result any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	answer, err := client.WithTimeout(cluster.LongTimeout).Request(ctx, method, path, body, nil)
	if status, told := err.(cluster.StatusError); told {
		return fmt.Errorf("%w: %s", err, status.Body)
	}
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(answer, result)
}

func tokenRotate(ctx context.Context, arguments []string, out io.Writer) error {
	flags := flag.NewFlagSet("k3s token rotate", flag.ContinueOnError)
	data := flags.String("data-dir", dataDir(), "folder that holds the state of k3s")
	given := flags.String("token", "", "the present token; default: that of the server beside")
	flags.StringVar(given, "t", "", "the present token")
	server := flags.String("server", localServer, "server to connect to")
	flags.StringVar(server, "s", localServer, "server to connect to")
	fresh := flags.String("new-token", "", "the new token; default: a random one")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	client, err := administrator(ctx, *server, *given, *data)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, rotationWarning)
	if *fresh == "" {
		*fresh = token.Random(secretBytes)
	}
	if err := ask(ctx, client, http.MethodPut, cluster.PathToken, cluster.TokenRequest{NewToken: *fresh}, nil); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "Token rotated, restart k3s nodes with new token")
	return err
}
