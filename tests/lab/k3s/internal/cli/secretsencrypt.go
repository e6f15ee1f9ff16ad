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
	"text/tabwriter"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/encryption"
)

const encryptUsageLines = "usage: k3s secrets-encrypt status|enable|disable|prepare|rotate|reencrypt|rotate-keys [options]"

// done are the lines that actions end with.
var done = map[string]string{
	encryption.ActionEnable:     "secrets-encryption enabled",
	encryption.ActionDisable:    "secrets-encryption disabled",
	encryption.ActionPrepare:    "prepare completed successfully",
	encryption.ActionRotate:     "rotate completed successfully",
	encryption.ActionReencrypt:  "reencryption started",
	encryption.ActionRotateKeys: "keys rotated, reencryption started",
}

// encryptCommand runs `k3s secrets-encrypt <verb>` and returns the exit code.
func encryptCommand(arguments []string) int {
	if len(arguments) == 0 {
		fmt.Println(encryptUsageLines)
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), cluster.LongTimeout)
	defer cancel()
	err := encryptVerb(ctx, arguments[0], arguments[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return fatal(err)
	}
	return 0
}

func encryptVerb(ctx context.Context, verb string, arguments []string, out io.Writer) error {
	flags := flag.NewFlagSet("k3s secrets-encrypt "+verb, flag.ContinueOnError)
	data := flags.String("data-dir", dataDir(), "folder that holds the state of k3s")
	given := flags.String("token", "", "token of the server; default: that of the server beside")
	server := flags.String("server", localServer, "server to connect to")
	format := flags.String("output", outputText, "text or json")
	flags.StringVar(format, "o", outputText, "text or json")
	request := cluster.EncryptionRequest{Action: verb}
	for _, name := range []string{"force", "f"} {
		flags.BoolVar(&request.Force, name, false, "whatever the stage")
	}
	flags.BoolVar(&request.Skip, "skip", false, "keep the old keys after the re-encryption")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	line, change := done[verb]
	if !change && verb != "status" {
		return errors.New(encryptUsageLines)
	}
	client, err := administrator(ctx, *server, *given, *data)
	if err != nil {
		return err
	}
	if change {
		if err := ask(ctx, client, http.MethodPut, cluster.PathEncrypt, request, nil); err != nil {
			return fmt.Errorf("%w: see server log for details", err)
		}
		_, err = fmt.Fprintln(out, line)
		return err
	}
	var status cluster.EncryptionStatus
	if err := ask(ctx, client, http.MethodGet, cluster.PathEncryptStatus, nil, &status); err != nil {
		return fmt.Errorf("%w: see server log for details", err)
	}
	return printEncryption(out, status, *format)
}

// printEncryption prints a status as k3s does.
func printEncryption(out io.Writer, status cluster.EncryptionStatus, format string) error {
	if format == outputJSON {
		return json.NewEncoder(out).Encode(status)
	}
	if format != outputText {
		return fmt.Errorf("invalid output format %q", format)
	}
	if status.Enable == nil {
		_, err := fmt.Fprintln(out, "Encryption Status: Disabled, no configuration file found")
		return err
	}
	word, hashes := "Disabled", "All hashes match"
	if *status.Enable {
		word = "Enabled"
	}
	if !status.HashMatch {
		hashes = status.HashError
	}
	fmt.Fprintf(out, "Encryption Status: %s\nCurrent Rotation Stage: %s\nServer Encryption Hashes: %s\n\n", word, status.Stage, hashes)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "Active\tKey Type\tName\n------\t--------\t----\n")
	fmt.Fprintf(table, " *\t%s\t%s\n", encryption.KeyType(status.ActiveKey), status.ActiveKey)
	for _, name := range status.InactiveKeys {
		fmt.Fprintf(table, "\t%s\t%s\n", encryption.KeyType(name), name)
	}
	return table.Flush()
}
