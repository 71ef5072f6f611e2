// Package login signs users in: it turns the proof of an OpenID provider into
// a sealed cookie, and the cookie into the facts of a session. It is the cold
// path, plain net/http handlers; the walk of package proxy only calls
// [Login.Session].
//
// A sign-in crosses two hosts, because one login serves many applications and
// no application may see another's cookie:
//
//	application's host   GET /page            no cookie: redirect to the login host,
//	                                          bound to this browser by a cookie
//	login host           GET /.yumen/start    no site cookie: redirect to the provider,
//	                                          with state, nonce and PKCE (RFC 7636)
//	login host           GET /.yumen/callback code → ID token → userId → site cookie,
//	                                          redirect with a one-time code of 30 s
//	application's host   GET /.yumen/enter    code → session cookie → back to /page
//
// Cookies are sealed, not looked up: any gateway of the site accepts them.
// What ends a session before its time is access's revocation of its id or user.
package login

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Prefix begins the paths that belong to the gateway on every host.
const Prefix = "/.yumen/"

// Config is what a [Login] needs. The zero value of an optional field selects
// its default.
type Config struct {
	Host             string         `yaml:"host"`               // name of the login host; required
	Issuer           string         `yaml:"issuer"`             // of the OpenID provider; required
	ClientID         string         `yaml:"client_id"`          // required
	ClientSecretFile string         `yaml:"client_secret_file"` // 0600 file; absent: public client with PKCE
	CAFile           string         `yaml:"ca_file"`            // PEM roots of the provider; default: the system's
	Scopes           []string       `yaml:"scopes"`             // besides openid; default none
	UserClaim        string         `yaml:"user_claim"`         // claim that names the user; default sub
	Map              string         `yaml:"map"`                // "control" (default): the control center maps (issuer, claim) to userId; "claim": the claim is the userId
	Levels           map[string]int `yaml:"levels"`             // acr → level; default: a number is its own level, everything else 1
	Lifetime         time.Duration  `yaml:"lifetime"`           // of a sign-in; default 8h
	APIAudiences     []string       `yaml:"api_audiences"`      // of the issuer's access tokens that programs may send instead of a cookie; default: none is taken
	CookieKeyFile    string         `yaml:"cookie_key_file"`    // shared by the gateways of the site; default state_dir/cookie.key

	// Application reports whether name, canonical, is an application's host.
	Application func(name string) bool `yaml:"-"` // required
	// Resolve maps an identity to a userId (Q26). Required with Map control.
	Resolve func(ctx context.Context, issuer, subject string) (userID string, r reason.Reason) `yaml:"-"`
	// Ended is called when a user signs out: the session's id is revoked and
	// everything that flows in it is cut.
	Ended func(sessionID string, expires time.Time) `yaml:"-"`
	// Deny writes a refusal as the gateway's page. Required.
	Deny func(w http.ResponseWriter, r *http.Request, why reason.Reason, detail string) `yaml:"-"`

	GatewayID string            `yaml:"-"`
	Audit     audit.Sink        `yaml:"-"` // default: none
	Logger    *zap.Logger       `yaml:"-"` // default: none
	Now       func() time.Time  `yaml:"-"` // default time.Now
	Transport http.RoundTripper `yaml:"-"` // to the provider; default: one with CAFile
	Previous  *Login            `yaml:"-"` // the one that this one replaces; which codes were used is taken over
}

// Validate returns every fault, each named by its YAML path.
func (c *Config) Validate() error {
	var errs []error
	need := func(path, v string) {
		if v == "" {
			errs = append(errs, fmt.Errorf("%s: missing", path))
		}
	}
	need("login.host", c.Host)
	need("login.client_id", c.ClientID)
	if _, err := apps.CanonicalHost(c.Host); c.Host != "" && (err != nil || strings.ContainsAny(c.Host, "/:[")) {
		errs = append(errs, fmt.Errorf("login.host: %q is no host name (leave out scheme and port)", c.Host))
	}
	if u, err := url.Parse(c.Issuer); err != nil || u.Host == "" || u.Scheme != "https" {
		errs = append(errs, fmt.Errorf("login.issuer: %q is no https URL", c.Issuer))
	}
	if c.Map != "" && c.Map != "control" && c.Map != "claim" {
		errs = append(errs, fmt.Errorf("login.map: %q is neither control nor claim", c.Map))
	}
	if c.Lifetime < 0 || c.Lifetime > MaxLifetime {
		errs = append(errs, fmt.Errorf("login.lifetime: %v is not between 0 and 720h", c.Lifetime))
	}
	for i, a := range c.APIAudiences {
		if a == "" || a == c.ClientID {
			errs = append(errs, fmt.Errorf("login.api_audiences[%d]: %q: an audience of its own is needed (one that is the client_id would take ID tokens)", i, a))
		}
	}
	for acr, n := range c.Levels {
		if n < 0 || n > 255 {
			errs = append(errs, fmt.Errorf("login.levels[%s]: %d is not between 0 and 255", acr, n))
		}
	}
	return errors.Join(errs...)
}

// Login signs users in. It is safe for concurrent use.
type Login struct {
	cfg      Config
	sealer   *Sealer
	provider provider
	bearer   bearer
	opened   opened
	codes    *once // shared with the one before and after
	mux      *http.ServeMux
}

// The cookies. __Host- binds them to their host, to TLS and to the path /.
const (
	cookieSession = "__Host-yumen"       // of an application's host
	cookieSite    = "__Host-yumen-site"  // of the login host
	cookieBinder  = "__Host-yumen-bind"  // binds a hand-over code to the browser that asked
	cookieState   = "__Host-yumen-login" // a login in progress
)

// CookiePrefix begins the name of every cookie of the gateway: applications
// neither see nor set them.
const CookiePrefix = "__Host-yumen"

// MaxLifetime bounds Config.Lifetime: no cookie of any gateway lives longer.
const MaxLifetime = 30 * 24 * time.Hour

const (
	stateLife = 10 * time.Minute
	codeLife  = 30 * time.Second
)

// New checks cfg and reads its files. The provider is asked for the first time
// when somebody signs in, so the gateway starts without it.
func New(cfg Config) (*Login, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("make login: %w", err)
	}
	if cfg.Application == nil || cfg.Deny == nil || cfg.Map != "claim" && cfg.Resolve == nil {
		return nil, errors.New("make login: Application, Deny and, unless map is claim, Resolve are required")
	}
	cfg.Host, _ = apps.CanonicalHost(cfg.Host) // Validate has seen it
	cfg.UserClaim = cmp.Or(cfg.UserClaim, "sub")
	cfg.Lifetime = cmp.Or(cfg.Lifetime, 8*time.Hour)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Audit == nil {
		cfg.Audit = audit.Discard
	}
	l := &Login{codes: &once{}}
	if cfg.Previous != nil {
		l.codes, cfg.Previous = cfg.Previous.codes, nil
	}
	l.cfg = cfg
	var err error
	if l.sealer, err = LoadSealer(cfg.CookieKeyFile); err != nil {
		return nil, err
	}
	if err := l.provider.init(&cfg); err != nil {
		return nil, err
	}
	l.bearer.keys.provider = &l.provider
	l.routes()
	return l, nil
}

// Close gives back idle connections to the provider. Sign-ins in progress end
// as they would.
func (l *Login) Close() { l.provider.client.CloseIdleConnections() }

// Host returns the canonical name of the login host.
func (l *Login) Host() string { return l.cfg.Host }

// Session returns the facts that the session cookie of an application's host
// proves at now. cookies are the values of the request's Cookie fields.
func (l *Login) Session(host string, cookies []string, now time.Time) (policy.Facts, reason.Reason) {
	value := ""
	for _, line := range cookies {
		for part := range strings.SplitSeq(line, ";") {
			name, v, ok := strings.Cut(strings.TrimSpace(part), "=")
			if !ok || name != cookieSession {
				continue
			}
			if value != "" && value != v {
				return policy.Facts{}, reason.CookieInvalid // two sessions: neither
			}
			value = v
		}
	}
	if value == "" {
		return policy.Facts{}, reason.LoginRequired
	}
	s, r := l.openSession(forSession, host, value, now)
	if r != reason.OK {
		return policy.Facts{}, r
	}
	return policy.Facts{
		SessionID: s.id, UserID: s.user, Browser: true,
		Level: int(s.level), Factors: s.factors, AuthTime: s.auth, Expires: s.expiry,
	}, reason.OK
}

func (l *Login) openSession(p purpose, host, value string, now time.Time) (session, reason.Reason) {
	s, known := l.opened.get(p, host, value)
	if !known {
		b, err := l.sealer.open(p, host, value)
		if err != nil || s.unmarshal(b) != nil {
			return s, reason.CookieInvalid
		}
		l.opened.put(p, host, value, s)
	}
	if !now.Before(s.expiry) {
		return s, reason.SessionExpired
	}
	return s, reason.OK
}

// StartURL is where a browser that has no session on authority (host, with the
// port when there is one) begins to sign in, so that it comes back to target.
// bind is what [Login.Bind] gave for the same browser. fresh asks the provider
// for a new proof even when the browser is signed in to the site: the session
// that it has was refused.
func (l *Login) StartURL(authority, target, bind string, fresh bool) string {
	host, port := splitAuthority(authority)
	u := url.URL{Scheme: "https", Host: l.cfg.Host, Path: Prefix + "start"}
	if port != "" {
		u.Host += ":" + port
	}
	sum := sha256.Sum256([]byte(bind))
	q := url.Values{"h": {host}, "rd": {safeReturn(target)}, "b": {base64.RawURLEncoding.EncodeToString(sum[:])}}
	if fresh {
		q.Set("fresh", "1")
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// Bind returns the binder of the browser that sent cookies, and the cookie to
// set when it has none yet ("" otherwise).
func (l *Login) Bind(cookies []string) (bind, setCookie string) {
	r := http.Request{Header: http.Header{"Cookie": cookies}}
	if c, err := r.Cookie(cookieBinder); err == nil && len(c.Value) == 22 {
		return c.Value, ""
	}
	bind = randomText(16)
	return bind, newCookie(cookieBinder, bind, 0).String()
}

func splitAuthority(a string) (host, port string) {
	if i := strings.LastIndexByte(a, ':'); i >= 0 && !strings.HasSuffix(a, "]") {
		return strings.TrimSuffix(strings.ToLower(a[:i]), "."), a[i+1:]
	}
	return strings.TrimSuffix(strings.ToLower(a), "."), ""
}

// newCookie returns a cookie with every guard. life 0: until the browser ends.
func newCookie(name, value string, life time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		MaxAge: int(life / time.Second),
	}
}

func (l *Login) audit(r *http.Request, kind audit.Kind, user, sid string, why reason.Reason, detail string) {
	l.cfg.Audit.Write(&audit.Record{
		Time: l.cfg.Now(), Kind: kind, GatewayID: l.cfg.GatewayID, UserID: user, SessionID: sid, Object: r.Host,
		Remote: r.RemoteAddr, Allowed: why == reason.OK, Result: why.String(), Code: why, Detail: detail,
	})
}

func readSecret(file string) (string, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("read login.client_secret_file: %w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("read login.client_secret_file %s: mode %v lets others read it (chmod 600 it)", file, fi.Mode().Perm())
	}
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}

func readRoots(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read login.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("read login.ca_file %s: no PEM certificate in it", file)
	}
	return pool, nil
}

func marshalState(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers of our own
	}
	return b
}
