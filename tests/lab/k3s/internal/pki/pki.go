// Package pki makes the certificate authorities and certificates of a cluster as files.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"time"

	"slipway/tests/lab/k3s/internal/paths"
)

// Lifetimes as k3s documents them (docs, cli/certificate).
const (
	caLifetime   = 3650 * 24 * time.Hour
	leafLifetime = 365 * 24 * time.Hour
	renewBefore  = 120 * 24 * time.Hour
)

// lifetime of what is issued; tests shorten it.
var lifetime = leafLifetime

// Modes of certificate and key files.
const (
	certificateMode = 0o644
	keyMode         = 0o600
)

// CA is a certificate authority with its key.
type CA struct {
	Certificate *x509.Certificate
	PEM         []byte
	key         crypto.Signer
}

// Leaf is what a certificate of an end entity says.
type Leaf struct {
	Name   string   // common name: the user of a client certificate
	Groups []string // organizations: the groups of a client certificate
	Hosts  []string // names and addresses of a serving certificate
	Usages []x509.ExtKeyUsage
}

// EnsureCA loads a certificate authority, or makes it where neither file exists.
func EnsureCA(name, certificateFile, keyFile string) (*CA, error) {
	if _, err := os.Stat(certificateFile); os.IsNotExist(err) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		template := &x509.Certificate{
			SerialNumber:          big.NewInt(0),
			Subject:               pkix.Name{CommonName: fmt.Sprintf("%s@%d", name, now.Unix())},
			NotBefore:             now.Add(-time.Minute),
			NotAfter:              now.Add(caLifetime),
			KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return nil, err
		}
		if err := writeKey(keyFile, key); err != nil {
			return nil, err
		}
		if err := paths.WriteFile(certificateFile, encode("CERTIFICATE", der), certificateMode); err != nil {
			return nil, err
		}
	}
	return LoadCA(certificateFile, keyFile)
}

// LoadCA reads a certificate authority from its files.
func LoadCA(certificateFile, keyFile string) (*CA, error) {
	content, err := os.ReadFile(certificateFile)
	if err != nil {
		return nil, err
	}
	certificate, err := ParseCertificate(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certificateFile, err)
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return nil, err
	}
	return &CA{Certificate: certificate, PEM: content, key: key}, nil
}

// Sign issues a certificate for a public key.
func (ca *CA) Sign(leaf Leaf, public crypto.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: leaf.Name, Organization: leaf.Groups},
		// Nodes whose clocks differ a little must be able to use it at once.
		NotBefore:   now.Add(-time.Minute),
		NotAfter:    now.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: leaf.Usages,
	}
	for _, host := range leaf.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, public, ca.key)
	if err != nil {
		return nil, err
	}
	return append(encode("CERTIFICATE", der), ca.PEM...), nil
}

// SignRequest issues a certificate for the key of a signing request; what the request says of names is not trusted.
func (ca *CA) SignRequest(leaf Leaf, request []byte) ([]byte, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("not a certificate request in PEM")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := parsed.CheckSignature(); err != nil {
		return nil, err
	}
	return ca.Sign(leaf, parsed.PublicKey)
}

// Ensure issues a certificate into files unless a good one is there: by this CA, with these names, its key at hand
// and more than 120 days to live.
func (ca *CA) Ensure(leaf Leaf, certificateFile, keyFile string) error {
	key, err := EnsureKey(keyFile)
	if err != nil {
		return err
	}
	if content, err := os.ReadFile(certificateFile); err == nil && ca.good(leaf, content, key.Public()) {
		return nil
	}
	issued, err := ca.Sign(leaf, key.Public())
	if err != nil {
		return err
	}
	return paths.WriteFile(certificateFile, issued, certificateMode)
}

func (ca *CA) good(leaf Leaf, content []byte, public crypto.PublicKey) bool {
	certificate, err := ParseCertificate(content)
	if err != nil || certificate.CheckSignatureFrom(ca.Certificate) != nil || !equalKeys(certificate.PublicKey, public) {
		return false
	}
	hosts := slices.Clone(certificate.DNSNames)
	for _, ip := range certificate.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return time.Until(certificate.NotAfter) > renewBefore &&
		certificate.Subject.CommonName == leaf.Name &&
		sameSet(certificate.Subject.Organization, leaf.Groups) &&
		sameSet(hosts, canonical(leaf.Hosts))
}

// canonical writes addresses in the one form that certificates give back.
func canonical(hosts []string) []string {
	result := slices.Clone(hosts)
	for i, host := range result {
		if ip := net.ParseIP(host); ip != nil {
			result[i] = ip.String()
		}
	}
	return result
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

func equalKeys(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// EnsureKey loads a private key, or makes an elliptic one where the file does not exist.
func EnsureKey(file string) (crypto.Signer, error) {
	if _, err := os.Stat(file); os.IsNotExist(err) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if err := writeKey(file, key); err != nil {
			return nil, err
		}
	}
	return loadKey(file)
}

// EnsureServiceKey makes the RSA key by which service account tokens are signed, where the file does not exist.
func EnsureServiceKey(file string) error {
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	return paths.WriteFile(file, encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), keyMode)
}

// Request makes a signing request for the key in a file, which is made where it does not exist.
func Request(keyFile string) ([]byte, error) {
	key, err := EnsureKey(keyFile)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return encode("CERTIFICATE REQUEST", der), nil
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(content []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// Pool makes a pool of the certificates in a PEM text.
func Pool(content []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bytes.TrimSpace(content)) {
		return nil, errors.New("no certificate in PEM")
	}
	return pool, nil
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return paths.WriteFile(file, encode("EC PRIVATE KEY", der), keyMode)
}

func loadKey(file string) (crypto.Signer, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("%s: no key in PEM", file)
	}
	switch block.Type {
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: key cannot sign", file)
	}
	return signer, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
