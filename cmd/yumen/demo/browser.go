package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"
)

// Browser is a person's browser as far as the story needs one: it keeps
// cookies, follows redirects and fills in the sign-in form.
type Browser struct {
	http *http.Client
	tlcp *overTLCP // nil: it speaks TLS
}

// NewBrowser returns a browser that trusts the demo's root and knows that names
// below localhost are this machine (RFC 6761 §6.3).
func (i *Info) NewBrowser() (*Browser, error) {
	pem, err := os.ReadFile(i.CAFile)
	if err != nil {
		return nil, fmt.Errorf("make browser: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, fmt.Errorf("make browser: %w", err)
	}
	return &Browser{http: &http.Client{
		Jar: jar,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			DialContext: dialLocal,
		},
	}}, nil
}

// dialLocal connects to addr; names below localhost are this machine.
func dialLocal(ctx context.Context, network, addr string) (net.Conn, error) {
	if host, port, err := net.SplitHostPort(addr); err == nil && (host == "localhost" || strings.HasSuffix(host, ".localhost")) {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
}

// Open asks for a page as a person does and returns the answer, whose body the
// caller closes.
func (b *Browser) Open(ctx context.Context, target string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "text/html,*/*")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	return b.http.Do(r)
}

// Page is Open with the body read: at most 1 MiB.
func (b *Browser) Page(ctx context.Context, target string) (status int, body string, at *url.URL, err error) {
	resp, err := b.Open(ctx, target)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(raw), resp.Request.URL, err
}

var (
	formAction  = regexp.MustCompile(`<form method="post" action="([^"]*)"`)
	formRequest = regexp.MustCompile(`name="request" value="([^"]*)"`)
)

// SignIn opens target, signs in where it is sent, and returns what target then
// shows.
func (b *Browser) SignIn(ctx context.Context, target string, u *UserInfo) (status int, body string, err error) {
	status, body, at, err := b.Page(ctx, target)
	if err != nil {
		return 0, "", err
	}
	action, request := formAction.FindStringSubmatch(body), formRequest.FindStringSubmatch(body)
	if action == nil || request == nil {
		return status, body, fmt.Errorf("sign in at %s: no form, status %d", target, status)
	}
	to, err := at.Parse(html.UnescapeString(action[1]))
	if err != nil {
		return 0, "", err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), strings.NewReader(url.Values{
		"request": {html.UnescapeString(request[1])}, "name": {u.Name}, "password": {u.Password},
	}.Encode()))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "text/html,*/*")
	r.Header.Set("Origin", at.Scheme+"://"+at.Host)
	resp, err := b.http.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(raw), err
}

// Close gives the browser's connections back.
func (b *Browser) Close() { b.http.CloseIdleConnections() }

// dialSOCKS5 connects to target (host:port) through a SOCKS5 server without
// authentication (RFC 1928).
func dialSOCKS5(ctx context.Context, server, target string) (_ net.Conn, err error) {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, fmt.Errorf("dial through agent: %w", err)
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	request := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if _, err := c.Write(append(request, byte(n>>8), byte(n))); err != nil {
		return nil, fmt.Errorf("dial through agent: %w", err)
	}
	answer := make([]byte, 2+4)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, fmt.Errorf("dial through agent: %w", err)
	}
	if answer[0] != 5 || answer[1] != 0 {
		return nil, errors.New("dial through agent: it wants authentication")
	}
	if answer[3] != 0 {
		return nil, fmt.Errorf("dial through agent: refused, SOCKS5 reply %d", answer[3])
	}
	rest := 4 + 2
	if answer[5] == 4 {
		rest = 16 + 2
	}
	if _, err := io.ReadFull(c, make([]byte, rest)); err != nil {
		return nil, fmt.Errorf("dial through agent: %w", err)
	}
	return c, c.SetDeadline(time.Time{})
}
