package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/yumen-zt/yumen/access/policy"
)

// provider is the OpenID provider, found when it is first needed.
type provider struct {
	cfg    *Config
	secret string
	client *http.Client

	mu    sync.Mutex
	found *oidc.Provider // guarded by mu; nil until discovery has succeeded
	retry time.Time      // guarded by mu; no discovery before
}

const (
	providerTimeout = 10 * time.Second // one exchange with the provider
	providerRetry   = 2 * time.Second  // pause after a failed discovery
	clockSlack      = time.Minute
)

func (p *provider) init(cfg *Config) error {
	p.cfg = cfg
	if cfg.ClientSecretFile != "" {
		var err error
		if p.secret, err = readSecret(cfg.ClientSecretFile); err != nil {
			return err
		}
	}
	transport := cfg.Transport
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		if cfg.CAFile != "" {
			roots, err := readRoots(cfg.CAFile)
			if err != nil {
				return err
			}
			t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		}
		transport = t
	}
	p.client = &http.Client{
		Transport: bounded{transport}, Timeout: providerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the provider redirects its own endpoints")
		},
	}
	return nil
}

// maxAnswer bounds what the provider may say: its configuration, keys and tokens
// are a few KiB.
const maxAnswer = 1 << 20

// bounded cuts the provider's answers off after maxAnswer bytes; what is cut
// does not parse.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// errProvider wraps what keeps the provider from being asked at all.
type errProvider struct{ err error }

func (e *errProvider) Error() string { return "ask OpenID provider: " + e.err.Error() }
func (e *errProvider) Unwrap() error { return e.err }

// discover returns the provider, asking for its configuration at most once in
// providerRetry while it does not answer.
func (p *provider) discover(ctx context.Context) (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p.found, nil
	}
	if now := p.cfg.Now(); now.Before(p.retry) {
		return nil, &errProvider{errors.New("it did not answer a moment ago")}
	}
	// The keys that it fetches later must not hang on this request's context.
	found, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.cfg.Issuer)
	if err != nil {
		p.retry = p.cfg.Now().Add(providerRetry)
		return nil, &errProvider{err}
	}
	p.found = found
	return found, nil
}

func (p *provider) oauth(found *oidc.Provider, redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: p.secret, Endpoint: found.Endpoint(),
		RedirectURL: redirect, Scopes: append([]string{oidc.ScopeOpenID}, p.cfg.Scopes...),
	}
}

// attempt is a login in progress, sealed into a cookie of the login host.
type attempt struct {
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"`
	Host     string `json:"h"` // application's host
	Return   string `json:"r"`
	Bind     string `json:"b"` // digest of the binder
	Expiry   int64  `json:"e"` // Unix seconds
}

// authorize returns the address of the provider's login page for a; fresh asks
// for a new proof even when the provider knows the browser.
func (p *provider) authorize(ctx context.Context, a *attempt, redirect string, fresh bool) (string, error) {
	found, err := p.discover(ctx)
	if err != nil {
		return "", err
	}
	a.State, a.Nonce, a.Verifier = randomText(16), randomText(16), oauth2.GenerateVerifier()
	options := []oauth2.AuthCodeOption{oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)}
	if fresh {
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"))
	}
	return p.oauth(found, redirect).AuthCodeURL(a.State, options...), nil
}

// identity is what an ID token proves.
type identity struct {
	subject string // the configured claim
	auth    time.Time
	level   uint8
	factors policy.Factors
}

// exchange turns a code into a verified identity (OpenID Connect Core 1.0
// §3.1.3.7).
func (p *provider) exchange(ctx context.Context, a *attempt, code, redirect string) (identity, error) {
	var id identity
	found, err := p.discover(ctx)
	if err != nil {
		return id, err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := p.oauth(found, redirect).Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		var refused *oauth2.RetrieveError
		if errors.As(err, &refused) {
			return id, fmt.Errorf("exchange code: the provider refused it: %s", refused.ErrorCode)
		}
		return id, &errProvider{err}
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return id, errors.New("exchange code: no id_token in the answer")
	}
	return p.verify(ctx, found, raw, a.Nonce)
}

func (p *provider) verify(ctx context.Context, found *oidc.Provider, raw, nonce string) (identity, error) {
	var id identity
	tok, err := found.VerifierContext(ctx, &oidc.Config{
		ClientID: p.cfg.ClientID, SupportedSigningAlgs: algorithms, Now: p.cfg.Now,
	}).Verify(ctx, raw)
	if err != nil {
		return id, fmt.Errorf("verify ID token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(tok.Nonce), []byte(nonce)) != 1 {
		return id, errors.New("verify ID token: the nonce is not the one that was sent")
	}
	var claims map[string]any
	if err := tok.Claims(&claims); err != nil {
		return id, fmt.Errorf("verify ID token: %w", err)
	}
	if azp, ok := claims["azp"]; ok && azp != p.cfg.ClientID || !ok && len(tok.Audience) > 1 {
		return id, errors.New("verify ID token: it was issued for another party (azp)")
	}
	if id, err = p.identity(tok.IssuedAt, claims); err != nil {
		return id, fmt.Errorf("verify ID token: %w", err)
	}
	return id, nil
}

// identity reads what the claims of a verified token say of its subject.
func (p *provider) identity(issued time.Time, claims map[string]any) (id identity, err error) {
	now := p.cfg.Now()
	if issued.After(now.Add(clockSlack)) {
		return id, errors.New("issued in the future (compare the clocks)")
	}
	id.subject, _ = claims[p.cfg.UserClaim].(string)
	if id.subject == "" || len(id.subject) > 256 {
		return id, fmt.Errorf("claim %q is missing, empty or too long", p.cfg.UserClaim)
	}
	id.auth = issued
	if t, ok := claims["auth_time"].(float64); ok {
		id.auth = time.Unix(int64(t), 0)
	}
	if id.auth.After(now.Add(clockSlack)) {
		return id, errors.New("signed in in the future (compare the clocks)")
	}
	acr, _ := claims["acr"].(string)
	id.level = p.level(acr)
	if list, ok := claims["amr"].([]any); ok {
		for _, m := range list {
			if s, ok := m.(string); ok {
				id.factors |= policy.FactorsOf(factorOf[s])
			}
		}
	}
	return id, nil
}

func (p *provider) level(acr string) uint8 {
	if n, ok := p.cfg.Levels[acr]; ok {
		return uint8(n)
	}
	if n, err := strconv.ParseUint(acr, 10, 8); err == nil {
		return uint8(n)
	}
	return 1 // signed in, by a provider that says no more
}

// factorOf maps the authentication methods of RFC 8176 to Table 17.
var factorOf = map[string]int{
	"pwd": 1, "pin": 1, "sms": 2, "otp": 4, "hwk": 4, "fpt": 5, "face": 6, "iris": 7,
}

// logoutURL is where the provider ends its own session, or "".
func (p *provider) logoutURL(back string) string {
	p.mu.Lock()
	found := p.found
	p.mu.Unlock()
	if found == nil {
		return ""
	}
	var meta struct {
		End string `json:"end_session_endpoint"`
	}
	if err := found.Claims(&meta); err != nil || meta.End == "" {
		return ""
	}
	return withQuery(meta.End, map[string]string{"client_id": p.cfg.ClientID, "post_logout_redirect_uri": back})
}

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}
