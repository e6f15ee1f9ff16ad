package supervisor

import (
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"
	"strings"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/token"
)

// group is a right to use the supervisor's own paths.
type group int

const (
	nobody group = iota
	agents
	servers
)

// identity is who a client certificate says that the client is.
type identity struct {
	user   string
	groups []string
}

var errBadCertificate = errors.New("client certificate is not valid for this cluster")

// certificateIdentity verifies the client certificate of a request; nil means that there is none.
func (s *Supervisor) certificateIdentity(r *http.Request) (*identity, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, nil
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range r.TLS.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	leaf := r.TLS.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         s.clientPool,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil || leaf.Subject.CommonName == "" {
		return nil, errBadCertificate
	}
	return &identity{leaf.Subject.CommonName, leaf.Subject.Organization}, nil
}

// authorize finds the right that the credentials of a request give: password, bootstrap token or node certificate.
func (s *Supervisor) authorize(r *http.Request) group {
	if user, password, found := r.BasicAuth(); found {
		want, known := s.config.Passwords[user]
		if !known || subtle.ConstantTimeCompare([]byte(want), []byte(password)) != 1 {
			return nobody
		}
		if user == cluster.UserServer {
			return servers
		}
		return agents
	}
	if bearer, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); found {
		parsed, err := token.Parse(bearer)
		if err != nil || parsed.ID == "" || s.config.CheckBootstrapToken(r.Context(), parsed.ID, parsed.Password) != nil {
			return nobody
		}
		return agents
	}
	if who, err := s.certificateIdentity(r); err == nil && who != nil && slices.Contains(who.groups, "system:nodes") {
		return agents
	}
	return nobody
}
