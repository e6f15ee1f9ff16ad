package cli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"sigs.k8s.io/yaml"

	"slipway/tests/lab/k3s/internal/certificates"
	"slipway/tests/lab/k3s/internal/paths"
)

const certificateUsageLines = "usage: k3s certificate check|rotate [--service NAME,...] [--output text|table|json|yaml]"

// certificateCommand runs `k3s certificate <verb>` and returns the exit code: 0 also for certificates that have expired.
func certificateCommand(arguments []string) int {
	if len(arguments) == 0 {
		fmt.Println(certificateUsageLines)
		return 0
	}
	err := certificateVerb(arguments[0], arguments[1:], os.Stdout, time.Now())
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return fatal(err)
	}
	return 0
}

func certificateVerb(verb string, arguments []string, out io.Writer, now time.Time) error {
	flags := flag.NewFlagSet("k3s certificate "+verb, flag.ContinueOnError)
	data := flags.String("data-dir", dataDir(), "folder that holds the state of k3s")
	var chosen []string
	choose := func(text string) error {
		chosen = append(chosen, strings.Split(text, ",")...)
		return nil
	}
	flags.Func("service", "services whose certificates are meant; default: all", choose)
	flags.Func("s", "services whose certificates are meant; default: all", choose)
	format := flags.String("output", outputText, "text, table, json or yaml")
	flags.StringVar(format, "o", outputText, "text, table, json or yaml")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	switch verb {
	case "check":
		all, err := certificates.Check(paths.Data(*data), chosen, now)
		if err != nil {
			return err
		}
		return printCertificates(out, all, *format)
	case "rotate":
		backups, err := certificates.Rotate(paths.Data(*data), chosen, now)
		if err != nil {
			return err
		}
		logrus.Infof("Successfully backed up certificates to %s, please restart k3s server or agent to rotate certificates", strings.Join(backups, ", "))
		return nil
	case "rotate-ca":
		return errors.New("k3s certificate rotate-ca is not part of the stand-in yet")
	}
	return errors.New(certificateUsageLines)
}

// printCertificates prints what a check found; as text it goes to the log, as in k3s.
func printCertificates(out io.Writer, all []certificates.Certificate, format string) error {
	switch format {
	case outputText:
		for _, certificate := range all {
			level := logrus.InfoLevel
			switch certificate.Status {
			case certificates.Soon:
				level = logrus.WarnLevel
			case certificates.Expired, certificates.NotYetValid:
				level = logrus.ErrorLevel
			}
			logrus.StandardLogger().Log(level, certificate.Text())
		}
		return nil
	case "table":
		table := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
		fmt.Fprintln(table, "FILENAME\tSUBJECT\tUSAGES\tEXPIRES\tRESIDUAL TIME\tSTATUS")
		for _, c := range all {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Filename, c.Subject, strings.Join(c.Usages, ","), c.ExpiryTime.UTC().Format(time.RFC3339), c.ResidualTime.Round(time.Hour), c.Status)
		}
		return table.Flush()
	case outputJSON, outputYAML:
	default:
		return fmt.Errorf("invalid output format %q", format)
	}
	content, err := json.Marshal(map[string]any{"Certificates": all})
	if err == nil && format == outputYAML {
		content, err = yaml.JSONToYAML(content)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, strings.TrimSpace(string(content)))
	return err
}
