package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"slipway/tests/lab/k3s/internal/pki"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	requestTimeout = 10 * time.Second
	// LongTimeout is for requests that do much on the server, such as a snapshot.
	LongTimeout = 5 * time.Minute
	answerLimit = 16 << 20 // bytes
)

// Client talks to a supervisor with a token, or with a certificate of the cluster.
type Client struct {
	URL   string // of the supervisor: a load balancer, or a server's own port
	Token token.Token
	CA    []byte // of the cluster, held against the hash in the token
	http  *http.Client
	// certificate tells that the client shows a certificate, so that no token is sent.
	certificate bool
}

// StatusError is an answer other than 200.
type StatusError struct {
	URL    string
	Code   int
	Status string
	Body   string
}

func (e StatusError) Error() string { return fmt.Sprintf("%s: %s", e.URL, e.Status) }

// ParseServerURL checks the address of a server. Errors: only https is allowed.
func ParseServerURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("invalid server url %s: %w", text, err)
	}
	if parsed.Scheme != "https" || parsed.Host == "" {
		return nil, fmt.Errorf("only https:// URLs are supported, invalid scheme: %s", text)
	}
	return parsed, nil
}

// Dial fetches the cluster's CA from a supervisor and holds it against the hash in the token.
// Errors: "failed to get CA certs", a hash that does not match.
func Dial(ctx context.Context, address string, join token.Token) (*Client, error) {
	// The CA comes over a connection that nobody has vouched for: the hash in the token does that afterwards.
	insecure := httpClient(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+PathCACerts, nil)
	if err != nil {
		return nil, err
	}
	ca, err := do(insecure, request)
	if err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	if err := join.CheckCA(ca); err != nil {
		return nil, err
	}
	roots, err := pki.Pool(ca)
	if err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	return &Client{URL: address, Token: join, CA: ca, http: httpClient(config)}, nil
}

// WithCertificate is a client that shows a certificate instead of the token.
func (c *Client) WithCertificate(certificate tls.Certificate) *Client {
	roots, _ := pki.Pool(c.CA) // Dial has read it before
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{certificate}}
	return &Client{URL: c.URL, CA: c.CA, http: httpClient(config), certificate: true}
}

// WithTimeout is a client whose requests may take longer.
func (c *Client) WithTimeout(limit time.Duration) *Client {
	patient, connection := *c, *c.http
	connection.Timeout = limit
	patient.http = &connection
	return &patient
}

// Request asks the supervisor. Errors: StatusError, those of the connection.
func (c *Client) Request(ctx context.Context, method, path string, body []byte, headers map[string]string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	switch {
	case c.certificate:
	case c.Token.ID != "":
		request.Header.Set("Authorization", "Bearer "+c.Token.ID+"."+c.Token.Password)
	default:
		user := c.Token.User
		if user == "" {
			user = UserNode
		}
		request.SetBasicAuth(user, c.Token.Password)
	}
	return do(c.http, request)
}

func httpClient(config *tls.Config) *http.Client {
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
}

func do(client *http.Client, request *http.Request) ([]byte, error) {
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, StatusError{request.URL.String(), response.StatusCode, response.Status, strings.TrimSpace(string(body))}
	}
	return body, nil
}
