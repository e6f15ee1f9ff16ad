package supervisor

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"slipway/tests/lab/k3s/internal/pki"
)

// Headers by which the kube-apiserver takes an identity from a front proxy that shows the right certificate.
const (
	headerUser   = "X-Remote-User"
	headerGroup  = "X-Remote-Group"
	headerPrefix = "X-Remote-"
)

// proxy passes requests on to the kube-apiserver: with the identity of a client certificate, or as they are.
type proxy struct {
	supervisor    *Supervisor
	authenticated *httputil.ReverseProxy
	plain         *httputil.ReverseProxy
}

func newProxy(s *Supervisor) (*proxy, error) {
	roots, err := pki.Pool(s.config.ServerCA.PEM)
	if err != nil {
		return nil, err
	}
	backend := func(certificates ...tls.Certificate) *httputil.ReverseProxy {
		return &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host = "https", s.config.APIServer
				r.SetXForwarded()
			},
			// HTTP/1.1 only: upgrades (exec, port-forward) need it.
			Transport: &http.Transport{
				TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: certificates},
				MaxIdleConnsPerHost: 100,
				IdleConnTimeout:     90 * time.Second,
				DisableCompression:  true,
			},
			FlushInterval: -1, // watches and logs are streams
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				if r.Context().Err() == nil {
					status(w, http.StatusServiceUnavailable, "ServiceUnavailable", errUnavailable)
				}
			},
			ErrorLog: log.New(io.Discard, "", 0),
		}
	}
	return &proxy{s, backend(s.config.FrontProxy), backend()}, nil
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Only this proxy may say who a request comes from.
	for name := range r.Header {
		if strings.HasPrefix(name, headerPrefix) {
			delete(r.Header, name)
		}
	}
	who, err := p.supervisor.certificateIdentity(r)
	switch {
	case err != nil:
		status(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
	case who == nil:
		p.plain.ServeHTTP(w, r)
	default:
		r.Header.Set(headerUser, who.user)
		r.Header[headerGroup] = who.groups
		p.authenticated.ServeHTTP(w, r)
	}
}

// status answers in the form in which Kubernetes clients expect errors.
func status(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{},
		"status": "Failure", "message": message, "reason": reason, "code": code,
	})
}
