// Package certificates checks and removes the certificates of a node, for `k3s certificate`.
package certificates

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"slipway/tests/lab/k3s/internal/paths"
)

// Warning is the time before the end from which a certificate is renewed at a start, and a check warns.
const Warning = 120 * 24 * time.Hour

// What a check says of a certificate.
const (
	OK          = "OK"
	Soon        = "WARNING"
	Expired     = "EXPIRED"
	NotYetValid = "NOT YET VALID"
)

// services are the certificates of each service (k3s docs, cli/certificate), below the data directory, without extension.
var services = map[string][]string{
	"admin":              {"server/tls/client-admin"},
	"api-server":         {"server/tls/client-kube-apiserver", "server/tls/serving-kube-apiserver"},
	"controller-manager": {"server/tls/client-controller"},
	"scheduler":          {"server/tls/client-scheduler"},
	"supervisor":         {"server/tls/client-supervisor"},
	"k3s-controller":     {"agent/client-k3s-controller"},
	"k3s-server":         {"server/tls/serving-k3s"},
	"cloud-controller":   {},
	"etcd":               {"server/tls/etcd/client", "server/tls/etcd/server-client", "server/tls/etcd/peer-server-client"},
	"auth-proxy":         {"server/tls/client-auth-proxy"},
	"kubelet":            {"agent/client-kubelet", "agent/serving-kubelet"},
	"kube-proxy":         {"agent/client-kube-proxy"},
}

// usages are the names of what certificates may be used for.
var usages = map[x509.ExtKeyUsage]string{x509.ExtKeyUsageClientAuth: "ClientAuth", x509.ExtKeyUsageServerAuth: "ServerAuth"}

// Certificate is what a check tells of one.
type Certificate struct {
	Filename, Subject, Issuer string
	Usages                    []string
	ExpiryTime                time.Time
	ResidualTime              time.Duration // ns
	Status                    string
}

// Text is the line of a check.
func (c Certificate) Text() string {
	what := "is ok, expires at"
	switch c.Status {
	case Soon:
		what = "will expire within 120 days at"
	case Expired:
		what = "has expired at"
	case NotYetValid:
		what = "is not yet valid, expires at"
	}
	return fmt.Sprintf("%s: certificate %s (%s) %s %s", c.Filename, c.Subject, strings.Join(c.Usages, ","), what, c.ExpiryTime.UTC().Format(time.RFC3339))
}

// files are the certificates of services that this node has; no services: all. Errors: an unknown service.
func files(data paths.Data, chosen []string) ([]string, error) {
	if len(chosen) == 0 {
		chosen = slices.Sorted(maps.Keys(services))
	}
	var found []string
	for _, service := range chosen {
		names, known := services[service]
		if !known {
			return nil, fmt.Errorf("%s is not a recognized service", service)
		}
		for _, name := range names {
			if file := data.Path(name + ".crt"); exists(file) {
				found = append(found, file)
			}
		}
	}
	return found, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// Check tells of the certificates of services, and of the authorities in the same files. Errors: an unknown service,
// an unreadable file.
func Check(data paths.Data, chosen []string, now time.Time) ([]Certificate, error) {
	names, err := files(data, chosen)
	if err != nil {
		return nil, err
	}
	var all []Certificate
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(bytes.TrimSpace(rest)) {
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			all = append(all, describe(filepath.Base(name), certificate, now))
		}
	}
	return all, nil
}

func describe(name string, certificate *x509.Certificate, now time.Time) Certificate {
	found := Certificate{
		Filename: name, Subject: certificate.Subject.String(), Issuer: certificate.Issuer.String(),
		ExpiryTime: certificate.NotAfter, ResidualTime: certificate.NotAfter.Sub(now), Status: OK,
	}
	if certificate.IsCA {
		found.Usages = []string{"CertSign"}
	}
	for _, usage := range certificate.ExtKeyUsage {
		found.Usages = append(found.Usages, usages[usage])
	}
	switch {
	case now.Before(certificate.NotBefore):
		found.Status = NotYetValid
	case now.After(certificate.NotAfter):
		found.Status = Expired
	case found.ResidualTime < Warning:
		found.Status = Soon
	}
	return found
}

// Rotate removes the certificates and keys of services, so that the next start makes new ones, and returns where it
// has put copies: tls-<seconds> in the directories of the server and the agent. Errors: an unknown service, no such node.
func Rotate(data paths.Data, chosen []string, now time.Time) ([]string, error) {
	names, err := files(data, chosen)
	if err != nil {
		return nil, err
	}
	backups, err := backUp(data, fmt.Sprintf("tls-%d", now.Unix()))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for _, file := range []string{name, strings.TrimSuffix(name, ".crt") + ".key"} {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return backups, err
			}
		}
	}
	return backups, nil
}

func backUp(data paths.Data, name string) ([]string, error) {
	var backups []string
	if exists(data.TLS()) {
		if err := paths.CopyDirectory(data.TLS(), data.Server(name)); err != nil {
			return nil, err
		}
		backups = append(backups, data.Server(name))
	}
	pairs, err := filepath.Glob(data.Agent("*.crt"))
	if err != nil {
		return backups, err
	}
	keys, err := filepath.Glob(data.Agent("*.key"))
	if err != nil {
		return backups, err
	}
	if pairs = append(pairs, keys...); len(pairs) > 0 {
		if err := paths.MkdirAll(data.Agent(name), 0o700); err != nil {
			return backups, err
		}
		backups = append(backups, data.Agent(name))
	}
	for _, file := range pairs {
		content, err := os.ReadFile(file)
		if err != nil {
			return backups, err
		}
		if err := paths.WriteFile(data.Agent(name, filepath.Base(file)), content, 0o600); err != nil {
			return backups, err
		}
	}
	if len(backups) == 0 {
		return nil, fmt.Errorf("no certificates in %s", data)
	}
	return backups, nil
}
