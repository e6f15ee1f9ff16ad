// Package supervisor serves the port of a k3s server: its own paths for nodes that join, everything else for the
// kube-apiserver behind it.
package supervisor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/nodepassword"
	"slipway/tests/lab/k3s/internal/pki"
)

const (
	headerTimeout  = 30 * time.Second
	requestLimit   = 64 << 10 // bytes of a signing request
	maxStreams     = 1000     // as kube-apiserver: one client may hold many watches on one connection
	clientCATitle  = "application/x-pem-file"
	textPlain      = "text/plain"
	errUnavailable = "apiserver not ready"
)

// Config is what a supervisor needs.
type Config struct {
	ServerCA, ClientCA *pki.CA
	Serving            tls.Certificate
	APIServer          string // host:port of the kube-apiserver
	FrontProxy         tls.Certificate
	Passwords          map[string]string // of the users "server" and "node"
	Settings           cluster.Settings
	StaticDir          string
	// CheckBootstrapToken returns nil for a valid bootstrap token.
	CheckBootstrapToken func(ctx context.Context, id, secret string) error
	// CheckNodePassword binds a node name to a password at its first use. Errors: nodepassword.ErrMismatch, others.
	CheckNodePassword func(ctx context.Context, node, password string) error
	// APIServers returns host:port of each server.
	APIServers func(ctx context.Context) ([]string, error)
	// Ready tells whether the core of the server is up.
	Ready func() bool
	// Servers are the paths that only servers and their administrators may use, by pattern of http.ServeMux.
	Servers map[string]http.HandlerFunc
}

// Supervisor is the handler of the port.
type Supervisor struct {
	config     Config
	clientPool *x509.CertPool
	mux        *http.ServeMux
}

// New makes a supervisor.
func New(config Config) (*Supervisor, error) {
	pool, err := pki.Pool(config.ClientCA.PEM)
	if err != nil {
		return nil, err
	}
	s := &Supervisor{config: config, clientPool: pool, mux: http.NewServeMux()}
	api, err := newProxy(s)
	if err != nil {
		return nil, err
	}
	s.mux.HandleFunc("GET "+cluster.PathPing, func(w http.ResponseWriter, _ *http.Request) { write(w, textPlain, []byte("pong")) })
	s.mux.HandleFunc("GET "+cluster.PathCACerts, func(w http.ResponseWriter, _ *http.Request) { write(w, textPlain, config.ServerCA.PEM) })
	s.mux.Handle("/static/", http.StripPrefix("/static/", http.FileServer(http.Dir(config.StaticDir))))
	s.handle("GET "+cluster.PathReady, s.ready)
	s.handle("GET "+cluster.PathSettings, s.settings)
	s.handle("GET "+cluster.PathAPIServers, s.apiServers)
	s.handle("GET "+cluster.PathClientCA, func(w http.ResponseWriter, _ *http.Request) { write(w, clientCATitle, config.ClientCA.PEM) })
	s.handle("GET "+cluster.PathServerCA, func(w http.ResponseWriter, _ *http.Request) { write(w, clientCATitle, config.ServerCA.PEM) })
	s.handle("POST "+cluster.PathClientKubelet, s.clientKubelet)
	s.handle("POST "+cluster.PathServingKubelet, s.servingKubelet)
	s.handle("POST "+cluster.PathClientKubeProxy, s.clientShared("system:kube-proxy"))
	s.handle("POST "+cluster.PathClientController, s.clientShared(cluster.ControllerUser))
	for pattern, handler := range config.Servers {
		s.handleFor(servers, pattern, handler)
	}
	s.mux.HandleFunc("/v1-k3s/", func(w http.ResponseWriter, r *http.Request) {
		if s.authorize(r) == nobody {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		http.NotFound(w, r)
	})
	s.mux.Handle("/", api)
	return s, nil
}

// Serve answers on a listener until the context ends. Errors: those of http.Server.
func (s *Supervisor) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: headerTimeout,
		// Scanners and clients with an old CA would fill the journal.
		ErrorLog: log.New(io.Discard, "", 0),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		TLSConfig: &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{s.config.Serving},
			// Certificates are verified by request: a foreign one must give 401, not a broken handshake.
			ClientAuth: tls.RequestClientCert,
			ClientCAs:  s.clientPool,
		},
	}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// handle registers a path for agents and servers.
func (s *Supervisor) handle(pattern string, handler http.HandlerFunc) {
	s.handleFor(agents, pattern, handler)
}

// handleFor registers a path for clients that have at least the given right.
func (s *Supervisor) handleFor(needed group, pattern string, handler http.HandlerFunc) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		given := s.authorize(r)
		if given < needed {
			logrus.Warnf("%s %s from %s: not authorized", r.Method, r.URL.Path, r.RemoteAddr)
			if given == nobody {
				http.Error(w, "Unauthorized", http.StatusUnauthorized)
			} else {
				http.Error(w, "Forbidden", http.StatusForbidden)
			}
			return
		}
		handler(w, r)
	})
}

func (s *Supervisor) ready(w http.ResponseWriter, _ *http.Request) {
	if !s.config.Ready() {
		http.Error(w, errUnavailable, http.StatusServiceUnavailable)
		return
	}
	write(w, textPlain, []byte("ok"))
}

func (s *Supervisor) settings(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.config.Settings)
}

func (s *Supervisor) apiServers(w http.ResponseWriter, r *http.Request) {
	addresses, err := s.config.APIServers(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	writeJSON(w, addresses)
}

func (s *Supervisor) clientKubelet(w http.ResponseWriter, r *http.Request) {
	node, ok := s.node(w, r)
	if !ok {
		return
	}
	leaf := pki.Leaf{Name: "system:node:" + node, Groups: []string{"system:nodes"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	sign(w, r, s.config.ClientCA, leaf)
}

func (s *Supervisor) servingKubelet(w http.ResponseWriter, r *http.Request) {
	node, ok := s.node(w, r)
	if !ok {
		return
	}
	hosts := []string{node, "localhost", "127.0.0.1", "::1"}
	for address := range strings.SplitSeq(r.Header.Get(cluster.HeaderNodeIP), ",") {
		if net.ParseIP(address) == nil {
			http.Error(w, "node IP address not valid", http.StatusBadRequest)
			return
		}
		hosts = append(hosts, address)
	}
	leaf := pki.Leaf{Name: node, Hosts: hosts, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	sign(w, r, s.config.ServerCA, leaf)
}

// clientShared signs certificates for a user whose rights all nodes share.
func (s *Supervisor) clientShared(user string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, ok := s.node(w, r); !ok {
			return
		}
		sign(w, r, s.config.ClientCA, pki.Leaf{Name: user, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	}
}

// node reads and checks the name and password by which a node asks for a certificate; it answers the failures itself.
func (s *Supervisor) node(w http.ResponseWriter, r *http.Request) (string, bool) {
	name, password := r.Header.Get(cluster.HeaderNodeName), r.Header.Get(cluster.HeaderNodePassword)
	if name == "" || password == "" {
		http.Error(w, "node name and password must be set", http.StatusBadRequest)
		return "", false
	}
	if !s.config.Ready() {
		http.Error(w, errUnavailable, http.StatusServiceUnavailable)
		return "", false
	}
	if err := s.config.CheckNodePassword(r.Context(), name, password); err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, nodepassword.ErrMismatch) {
			status = http.StatusForbidden
		}
		logrus.Errorf("unable to verify password for node %s: %v", name, err)
		http.Error(w, err.Error(), status)
		return "", false
	}
	return name, true
}

func sign(w http.ResponseWriter, r *http.Request, ca *pki.CA, leaf pki.Leaf) {
	request, err := io.ReadAll(http.MaxBytesReader(w, r.Body, requestLimit))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	certificate, err := ca.SignRequest(leaf, request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	write(w, clientCATitle, certificate)
}

func write(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Write(body)
}

func writeJSON(w http.ResponseWriter, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, "application/json", body)
}
