package supervisor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/nodepassword"
	"slipway/tests/lab/k3s/internal/pki"
)

// bed is a supervisor on a real port with a stand-in for the kube-apiserver behind it.
type bed struct {
	url       string
	directory string
	server    *pki.CA
	client    *pki.CA
	ready     bool
	// what the kube-apiserver got last
	got http.Header
	tls *tls.ConnectionState
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{directory: t.TempDir(), ready: true}
	b.server, b.client = b.ca(t, "server-ca"), b.ca(t, "client-ca")
	front := b.certificate(t, b.ca(t, "request-header-ca"), pki.Leaf{Name: "system:auth-proxy", Usages: clientUse})
	serving := b.certificate(t, b.server, pki.Leaf{Name: "k3s", Hosts: []string{"127.0.0.1"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.got, b.tls = r.Header.Clone(), r.TLS
		if r.Header.Get("X-Remote-User") == "" && r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	api.TLS = &tls.Config{Certificates: []tls.Certificate{serving}, ClientAuth: tls.RequestClientCert}
	api.StartTLS()
	t.Cleanup(api.Close)
	handler, err := New(Config{
		ServerCA: b.server, ClientCA: b.client, Serving: serving, FrontProxy: front,
		APIServer: strings.TrimPrefix(api.URL, "https://"),
		Passwords: map[string]string{cluster.UserServer: "serverpass", cluster.UserNode: "nodepass"},
		Settings:  cluster.Settings{ClusterDomain: "cluster.test"}, StaticDir: b.directory,
		CheckBootstrapToken: func(_ context.Context, id, secret string) error {
			if id+"."+secret == "abcdef.0123456789abcdef" {
				return nil
			}
			return errors.New("unknown token")
		},
		CheckNodePassword: func(_ context.Context, node, password string) error {
			if node == "taken" && password != "right" {
				return nodepassword.ErrMismatch
			}
			return nil
		},
		APIServers: func(context.Context) ([]string, error) { return []string{"10.0.0.1:6443"}, nil },
		Ready:      func() bool { return b.ready },
		Servers: map[string]http.HandlerFunc{
			"GET " + cluster.PathBootstrap: func(w http.ResponseWriter, _ *http.Request) { write(w, textPlain, []byte("keys")) },
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go handler.Serve(t.Context(), listener)
	b.url = "https://" + listener.Addr().String()
	return b
}

var clientUse = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

func (b *bed) ca(t *testing.T, name string) *pki.CA {
	t.Helper()
	ca, err := pki.EnsureCA(name, filepath.Join(b.directory, name+".crt"), filepath.Join(b.directory, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (b *bed) certificate(t *testing.T, ca *pki.CA, leaf pki.Leaf) tls.Certificate {
	t.Helper()
	base := filepath.Join(b.directory, strings.ReplaceAll(leaf.Name, ":", "-")+ca.Certificate.Subject.CommonName)
	if err := ca.Ensure(leaf, base+".crt", base+".key"); err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.LoadX509KeyPair(base+".crt", base+".key")
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// call sends a request and returns status and body.
func (b *bed) call(t *testing.T, method, path string, prepare func(*http.Request), certificates ...tls.Certificate) (int, string) {
	t.Helper()
	roots, err := pki.Pool(b.server.PEM)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, b.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(request)
	}
	config := &tls.Config{RootCAs: roots}
	if len(certificates) > 0 {
		// Shown whatever authorities the server names: an attacker would not look at that list.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificates[0], nil }
	}
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

func basic(user, password string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(user, password) }
}

func TestOpenPaths(t *testing.T) {
	b := newBed(t)
	if status, body := b.call(t, "GET", "/ping", nil); status != 200 || body != "pong" {
		t.Error(status, body)
	}
	if status, body := b.call(t, "GET", "/cacerts", nil); status != 200 || body != string(b.server.PEM) {
		t.Error(status, body)
	}
	if status, _ := b.call(t, "GET", "/readyz", nil); status != 401 {
		t.Error("anonymous /readyz:", status)
	}
}

func TestNodePathsNeedCredentials(t *testing.T) {
	b := newBed(t)
	node := b.certificate(t, b.client, pki.Leaf{Name: "system:node:n", Groups: []string{"system:nodes"}, Usages: clientUse})
	user := b.certificate(t, b.client, pki.Leaf{Name: "somebody", Usages: clientUse})
	bearer := func(text string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+text) }
	}
	for name, test := range map[string]struct {
		prepare      func(*http.Request)
		certificates []tls.Certificate
		want         int
	}{
		"nothing":               {nil, nil, 401},
		"agent token":           {basic("node", "nodepass"), nil, 200},
		"server token":          {basic("server", "serverpass"), nil, 200},
		"wrong password":        {basic("node", "wrong"), nil, 401},
		"password of the other": {basic("server", "nodepass"), nil, 401},
		"unknown user":          {basic("root", "nodepass"), nil, 401},
		"bootstrap token":       {bearer("abcdef.0123456789abcdef"), nil, 200},
		"other bootstrap token": {bearer("abcdef.xxxxxxxxxxxxxxxx"), nil, 401},
		"service account token": {bearer("eyJhbGciOi"), nil, 401},
		"node certificate":      {nil, []tls.Certificate{node}, 200},
		"user certificate":      {nil, []tls.Certificate{user}, 401},
	} {
		if status, body := b.call(t, "GET", cluster.PathAPIServers, test.prepare, test.certificates...); status != test.want {
			t.Error(name, status, body)
		}
	}
}

func TestServerPathsAreForServers(t *testing.T) {
	b := newBed(t)
	node := b.certificate(t, b.client, pki.Leaf{Name: "system:node:n", Groups: []string{"system:nodes"}, Usages: clientUse})
	if status, body := b.call(t, "GET", cluster.PathBootstrap, basic("server", "serverpass")); status != 200 || body != "keys" {
		t.Error(status, body)
	}
	for want, prepare := range map[int]func(*http.Request){401: nil, 403: basic("node", "nodepass")} {
		if status, body := b.call(t, "GET", cluster.PathBootstrap, prepare); status != want || strings.Contains(body, "keys") {
			t.Error(want, status, body)
		}
	}
	if status, body := b.call(t, "GET", cluster.PathBootstrap, nil, node); status != 403 {
		t.Error("a node's certificate:", status, body)
	}
}

func TestNotReadyIs503(t *testing.T) {
	b := newBed(t)
	b.ready = false
	if status, _ := b.call(t, "GET", cluster.PathReady, basic("node", "nodepass")); status != 503 {
		t.Error(status)
	}
}

func TestNodePasswordMismatchIs403(t *testing.T) {
	b := newBed(t)
	request, err := pki.Request(filepath.Join(b.directory, "n.key"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(node, password string) (int, string) {
		return b.call(t, "POST", cluster.PathClientKubelet, func(r *http.Request) {
			r.SetBasicAuth("node", "nodepass")
			r.Header.Set(cluster.HeaderNodeName, node)
			r.Header.Set(cluster.HeaderNodePassword, password)
			r.Body = io.NopCloser(strings.NewReader(string(request)))
		})
	}
	if status, _ := ask("taken", "wrong"); status != 403 {
		t.Error(status)
	}
	status, body := ask("taken", "right")
	certificate, err := pki.ParseCertificate([]byte(body))
	if status != 200 || err != nil || certificate.Subject.CommonName != "system:node:taken" || !slices.Contains(certificate.Subject.Organization, "system:nodes") {
		t.Error(status, body, err)
	}
	if status, _ := ask("", "x"); status != 400 {
		t.Error("a node must name itself:", status)
	}
}

func TestIdentityComesFromTheCertificateOnly(t *testing.T) {
	b := newBed(t)
	forge := func(r *http.Request) {
		r.Header.Set("X-Remote-User", "system:admin")
		r.Header.Set("X-Remote-Group", "system:masters")
		r.Header.Set("X-Remote-Extra-Scopes", "all")
		r.Header["x-remote-user"] = []string{"system:admin"}
	}
	if status, _ := b.call(t, "GET", "/api", forge); status != 401 {
		t.Error("forged headers:", status)
	}
	if len(b.tls.PeerCertificates) > 0 {
		t.Error("the front proxy's certificate was shown for an anonymous request")
	}
	user := b.certificate(t, b.client, pki.Leaf{Name: "jane", Groups: []string{"team"}, Usages: clientUse})
	if status, _ := b.call(t, "GET", "/api", forge, user); status != 200 {
		t.Error(status)
	}
	if got := b.got["X-Remote-User"]; !slices.Equal(got, []string{"jane"}) {
		t.Error(got)
	}
	if got := b.got["X-Remote-Group"]; !slices.Equal(got, []string{"team"}) {
		t.Error(got)
	}
	if b.got.Get("X-Remote-Extra-Scopes") != "" || b.tls.PeerCertificates[0].Subject.CommonName != "system:auth-proxy" {
		t.Error(b.got)
	}
}

func TestForeignCertificateIsRefused(t *testing.T) {
	b := newBed(t)
	foreign := b.certificate(t, b.ca(t, "other-ca"), pki.Leaf{Name: "system:admin", Groups: []string{"system:masters"}, Usages: clientUse})
	if status, body := b.call(t, "GET", "/api", nil, foreign); status != 401 || !strings.Contains(body, `"kind":"Status"`) {
		t.Error(status, body)
	}
	serving := b.certificate(t, b.client, pki.Leaf{Name: "server", Hosts: []string{"x"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if status, _ := b.call(t, "GET", "/api", nil, serving); status != 401 {
		t.Error("a serving certificate is no identity:", status)
	}
}

func TestBearerTokensPass(t *testing.T) {
	b := newBed(t)
	status, _ := b.call(t, "GET", "/api", func(r *http.Request) { r.Header.Set("Authorization", "Bearer abc") })
	if status != 200 || b.got.Get("Authorization") != "Bearer abc" || b.got.Get("X-Remote-User") != "" {
		t.Error(status, b.got)
	}
}
