package testbed

//lint:file-ignore SA1019 net/http offers HTTP/2 by ALPN to *tls.Conn only; x/net/http2 takes any connection

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Browser is a client with cookies that finds a site's hosts on loopback.
type Browser struct {
	Client *http.Client
	s      *Site
	v6     bool
	roots  *x509.CertPool
}

// NewBrowser returns a browser that speaks h2 when h2 is set, else h1, over
// IPv4 or IPv6.
func (s *Site) NewBrowser(o Owner, h2, v6 bool) *Browser {
	o.Helper()
	b := &Browser{s: s, v6: v6, roots: x509.NewCertPool()}
	if !b.roots.AppendCertsFromPEM(s.CA) {
		o.Fatalf("no root in the site's CA file")
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		o.Fatalf("%v", err)
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(host, Domain) || strings.HasSuffix(host, ".localhost") {
			host = strings.TrimSuffix(Loopback(v6, 0), ":0")
			host = strings.Trim(host, "[]")
		}
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, net.JoinHostPort(host, port))
	}
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: b.roots}, ForceAttemptHTTP2: h2, DisableCompression: true, DialContext: dial,
	}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	b.Client = &http.Client{Jar: jar, Transport: tr}
	if s.TLCPRoots != nil {
		b.Client.Transport = &overTLCP{tls: tr, tlcp: tlcpTransport(s, h2, dial)}
	}
	o.Cleanup(b.Client.CloseIdleConnections)
	return b
}

// overTLCP speaks TLCP with the site's hosts, and TLS with the identity provider.
type overTLCP struct {
	tls  *http.Transport
	tlcp interface {
		http.RoundTripper
		CloseIdleConnections()
	}
}

func (o *overTLCP) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Hostname(), "."+Domain) {
		return o.tlcp.RoundTrip(r)
	}
	return o.tls.RoundTrip(r)
}

func (o *overTLCP) CloseIdleConnections() {
	o.tls.CloseIdleConnections()
	o.tlcp.CloseIdleConnections()
}

func tlcpTransport(s *Site, h2 bool, dial func(ctx context.Context, network, addr string) (net.Conn, error)) interface {
	http.RoundTripper
	CloseIdleConnections()
} {
	proto := "http/1.1"
	if h2 {
		proto = "h2"
	}
	// One configuration a transport: connections resume each other's sessions.
	config := &tlcp.Config{RootCAs: s.TLCPRoots, NextProtos: []string{proto}, SessionCache: tlcp.NewLRUSessionCache(0)}
	connect := func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := config.Clone()
		c.ServerName = host
		conn := tlcp.Client(raw, c)
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != proto {
			conn.Close()
			return nil, fmt.Errorf("the gateway chose the protocol %q, want %q", got, proto)
		}
		return conn, nil
	}
	if !h2 {
		return &http.Transport{DialTLSContext: connect, DisableCompression: true}
	}
	return &http2.Transport{DisableCompression: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		return connect(ctx, network, addr)
	}}
}

// Page is an answer with its body, at most 1 MiB of it.
type Page struct {
	Status int
	Proto  string
	Header http.Header
	Body   string
	At     *url.URL
}

// Get navigates to target.
func (b *Browser) Get(ctx context.Context, target string) (*Page, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	return b.do(r)
}

func (b *Browser) do(r *http.Request) (*Page, error) {
	r.Header.Set("Accept", "text/html,*/*")
	resp, err := b.Client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &Page{resp.StatusCode, resp.Proto, resp.Header, string(body), resp.Request.URL}, err
}

var (
	formAction  = regexp.MustCompile(`<form method="post" action="([^"]*)"`)
	formRequest = regexp.MustCompile(`name="request" value="([^"]*)"`)
)

// SignIn opens target, fills the provider's form in and returns what target
// shows then.
func (b *Browser) SignIn(ctx context.Context, target string, u *User) (*Page, error) {
	p, err := b.Get(ctx, target)
	if err != nil {
		return nil, err
	}
	action, request := formAction.FindStringSubmatch(p.Body), formRequest.FindStringSubmatch(p.Body)
	if action == nil || request == nil {
		return p, fmt.Errorf("%s shows no form, status %d: %.300s", p.At, p.Status, p.Body)
	}
	to, err := p.At.Parse(html.UnescapeString(action[1]))
	if err != nil {
		return nil, err
	}
	form := url.Values{"request": {html.UnescapeString(request[1])}, "name": {u.Name}, "password": {u.Password}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", p.At.Scheme+"://"+p.At.Host)
	return b.do(r)
}

// Cookies returns the Cookie field that the browser sends to target.
func (b *Browser) Cookies(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	var all []string
	for _, c := range b.Client.Jar.Cookies(u) {
		all = append(all, c.Name+"="+c.Value)
	}
	return strings.Join(all, "; ")
}

// HTTP3 returns a client with the browser's cookies that speaks HTTP/3 alone.
func (b *Browser) HTTP3(o Owner) *http.Client {
	tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: b.roots}, DisableCompression: true,
		Dial: func(ctx context.Context, addr string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, Loopback(b.v6, b.s.Port), t, q)
		}}
	o.Cleanup(func() { _ = tr.Close() })
	return &http.Client{Jar: b.Client.Jar, Transport: tr}
}

// Raw opens a TLS or TLCP connection with ALPN http/1.1 to a host of the site.
func (b *Browser) Raw(ctx context.Context, host string) (net.Conn, error) {
	inner, at := &net.Dialer{Timeout: 5 * time.Second}, Loopback(b.v6, b.s.Port)
	if b.s.TLCPRoots != nil {
		d := tlcp.Dialer{NetDialer: inner, Config: &tlcp.Config{RootCAs: b.s.TLCPRoots, ServerName: host, NextProtos: []string{"http/1.1"}}}
		return d.DialContext(ctx, "tcp", at)
	}
	d := tls.Dialer{NetDialer: inner, Config: &tls.Config{RootCAs: b.roots, ServerName: host, NextProtos: []string{"http/1.1"}}}
	return d.DialContext(ctx, "tcp", at)
}

// SignOut signs out at an application, as its page does.
func (b *Browser) SignOut(ctx context.Context, name string) (*Page, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.s.URL(name, "/.yumen/logout"), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Origin", strings.TrimSuffix(b.s.URL(name, ""), "/"))
	return b.do(r)
}
