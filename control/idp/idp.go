// Package idp is the control center's embedded OpenID provider (CSA GCR
// 002-2025 §7.1, §9.1: OIDC for identity): authorization code with PKCE S256
// for the clients of the configuration, which are the login hosts of gateways.
//
// The protocol is zitadel/oidc's; this package adds the accounts, the login
// page in Chinese and English, and what the protocol leaves to its host: an
// authorization request belongs to the browser that began it, a code is gone
// when it is looked at, and everything that is remembered is bounded. Start
// reading at [New].
package idp

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/text/language"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Key is a signing key, ECDSA P-256 (ES256).
type Key struct {
	ID  string
	Key *ecdsa.PrivateKey
}

// Account is a user as clients see it.
type Account struct {
	ID      string // sub
	Name    string // preferred_username
	Display string // name
}

// Client is a relying party.
type Client struct {
	ID           string
	Secret       string // empty: public, by PKCE alone
	RedirectURIs []string
	LogoutURIs   []string
}

// Event says what somebody did, for the audit.
type Event struct {
	What   string // login, logout
	User   string
	Client string
	Remote string
	Reason reason.Reason
}

// Config is what a [Provider] needs; every field but Notice and Audit is
// required.
type Config struct {
	Issuer    string // https, without path
	Clients   []Client
	CryptoKey [32]byte // protects opaque access tokens
	Keys      []Key    // the first signs, all are published
	// SignIn checks a password and returns the account, or why not. The account
	// of a locked user comes with reason.Locked, if the password is right.
	SignIn func(ctx context.Context, name, password, remote string) (Account, reason.Reason)
	// Account returns the account of a userId if it may still be used.
	Account func(userID string) (Account, bool)
	// Notice returns the operator's message to a locked user.
	Notice func(userID string) string
	Audit  func(Event)
	Now    func() time.Time
}

// Provider is the OpenID provider: an [http.Handler] for a listener of its own.
type Provider struct {
	cfg   Config
	mem   *memory
	inner *op.Provider
	mux   *http.ServeMux
}

// The strength of a password sign-in as the claims say it.
const (
	acrPassword = "1"
	amrPassword = "pwd"
)

// New returns the provider that cfg describes.
func New(cfg Config) (*Provider, error) {
	u, err := url.Parse(cfg.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("make OpenID provider: issuer %q is no https URL without path", cfg.Issuer)
	case len(cfg.Keys) == 0:
		return nil, errors.New("make OpenID provider: no signing key")
	}
	if cfg.Audit == nil {
		cfg.Audit = func(Event) {}
	}
	if cfg.Notice == nil {
		cfg.Notice = func(string) string { return "" }
	}
	p := &Provider{cfg: cfg, mem: newMemory(cfg.Now)}
	p.inner, err = op.NewProvider(&op.Config{
		CryptoKey: cfg.CryptoKey, CryptoKeyId: "1", DefaultLogoutRedirectURI: "/signed-out", CodeMethodS256: true,
		SupportedUILocales: []language.Tag{language.Chinese, language.English},
		SupportedScopes:    []string{"openid", "profile"},
		SupportedClaims:    []string{"sub", "aud", "exp", "iat", "iss", "auth_time", "nonce", "acr", "amr", "azp", "at_hash", "preferred_username", "name"},
	}, &storage{p}, op.StaticIssuer(cfg.Issuer), op.WithCORSOptions(nil), op.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))))
	if err != nil {
		return nil, fmt.Errorf("make OpenID provider: %w", err)
	}
	p.mux = http.NewServeMux()
	for _, path := range []string{"GET /.well-known/openid-configuration", "GET /keys", "POST /oauth/token", "/userinfo", "/revoke", "/end_session"} {
		p.mux.Handle(path, p.inner)
	}
	p.mux.HandleFunc("/authorize", p.authorize)
	p.mux.HandleFunc("GET /authorize/callback", p.callback)
	p.mux.HandleFunc("GET /login", p.loginPage)
	p.mux.HandleFunc("POST /login", p.login)
	p.mux.HandleFunc("GET /signed-out", p.signedOut)
	p.mux.HandleFunc("GET /login.css", style)
	return p, nil
}

// ServeHTTP serves the endpoints of the provider and its login page.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("Cache-Control", "no-store")
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	p.mux.ServeHTTP(w, r)
}

// End forgets every token and unfinished login of a user: they were locked or
// removed.
func (p *Provider) End(userID string) { p.mem.end(userID, "") }
