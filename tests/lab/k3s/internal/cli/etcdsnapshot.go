package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"sigs.k8s.io/yaml"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/snapshots"
)

const (
	onDemand           = "on-demand" // name of snapshots that are asked for
	snapshotUsageLines = "usage: k3s etcd-snapshot save|list|delete|prune [options]"
	keptSnapshots      = 5
	outputYAML         = "yaml"
	snapshotAPI        = "k3s.cattle.io/v1"
)

// snapshotCommand runs `k3s etcd-snapshot [verb]` and returns the exit code.
func snapshotCommand(arguments []string) int {
	ctx, cancel := context.WithTimeout(context.Background(), cluster.LongTimeout)
	defer cancel()
	verb, rest := cluster.SnapshotSave, arguments
	if len(arguments) > 0 && !strings.HasPrefix(arguments[0], "-") {
		verb, rest = arguments[0], arguments[1:]
	}
	err := snapshotVerb(ctx, verb, rest, os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return fatal(err)
	}
	return 0
}

// snapshotVerb asks the server beside this command; a server that does not run cannot answer.
func snapshotVerb(ctx context.Context, verb string, arguments []string, out io.Writer) error {
	var request cluster.SnapshotRequest
	flags := flag.NewFlagSet("k3s etcd-snapshot "+verb, flag.ContinueOnError)
	either := func(target *string, value, usage string, names ...string) {
		for _, name := range names {
			flags.StringVar(target, name, value, usage)
		}
	}
	var data, server, given, format string
	either(&data, dataDir(), "folder that holds the state of k3s", "data-dir", "d")
	either(&server, localServer, "server to connect to", "etcd-server", "s")
	either(&given, "", "token of the server; default: that of the server beside", "etcd-token", "t")
	either(&request.Name, onDemand, "name of the snapshot, or how the names of those to prune begin", "name", "etcd-snapshot-name")
	either(&request.Directory, "", "directory of the snapshots; default: that of the server", "dir", "etcd-snapshot-dir")
	either(&format, "", "table, json or yaml", "output", "o")
	for _, name := range []string{"snapshot-compress", "etcd-snapshot-compress"} {
		flags.BoolVar(&request.Compress, name, false, "compress the snapshot")
	}
	for _, name := range []string{"snapshot-retention", "etcd-snapshot-retention"} {
		flags.IntVar(&request.Retention, name, keptSnapshots, "number of snapshots to keep")
	}
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	request.Names = flags.Args()
	switch verb {
	case cluster.SnapshotSave, cluster.SnapshotDelete, cluster.SnapshotPrune:
	case "ls", "l", cluster.SnapshotList:
		verb = cluster.SnapshotList
	default:
		return errors.New(snapshotUsageLines)
	}
	request.Operation = verb
	client, err := administrator(ctx, server, given, data)
	if err != nil {
		return err
	}
	var result cluster.SnapshotResult
	if err := ask(ctx, client, http.MethodPost, cluster.PathDBSnapshot, request, &result); err != nil {
		return err
	}
	for _, name := range result.Created {
		logrus.Infof("Snapshot %s saved.", name)
	}
	for _, name := range result.Deleted {
		logrus.Infof("Snapshot %s deleted.", name)
	}
	if verb == cluster.SnapshotPrune && len(result.Deleted) == 0 {
		logrus.Info("No snapshots to prune.")
	}
	if verb == cluster.SnapshotList {
		return printSnapshots(out, result.Files, format)
	}
	return nil
}

// printSnapshots prints a list as k3s does: columns, or objects of kind ETCDSnapshotFile.
func printSnapshots(out io.Writer, files []snapshots.File, format string) error {
	switch format {
	case "", "table":
		table := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
		fmt.Fprintln(table, "Name\tLocation\tSize\tCreated")
		for _, file := range files {
			fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", file.Name, file.Location, file.Size, file.Created.Format(time.RFC3339))
		}
		return table.Flush()
	case outputJSON, outputYAML:
	default:
		return fmt.Errorf("invalid output format %q", format)
	}
	items := []any{}
	for _, file := range files {
		items = append(items, map[string]any{
			"metadata": map[string]any{"name": "local-" + file.Name},
			"spec":     map[string]any{"snapshotName": file.Name, "nodeName": file.Node, "location": file.Location},
			"status":   map[string]any{"size": file.Size, "creationTime": file.Created.UTC().Format(time.RFC3339), "readyToUse": true},
		})
	}
	content, err := json.Marshal(map[string]any{"apiVersion": snapshotAPI, "kind": "ETCDSnapshotFileList", "items": items})
	if err == nil && format == outputYAML {
		content, err = yaml.JSONToYAML(content)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, strings.TrimSpace(string(content)))
	return err
}
