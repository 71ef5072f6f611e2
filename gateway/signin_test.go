package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/wire"
)

// provider is an OpenID provider that lets everybody in as one user.
type provider struct {
	*httptest.Server
	key *ecdsa.PrivateKey

	mu    sync.Mutex
	user  string // guarded by mu
	nonce string // guarded by mu
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	p := &provider{key: key, user: user}
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys"})
	})
	mux.HandleFunc("/auth", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		p.mu.Lock()
		p.nonce = q.Get("nonce")
		p.mu.Unlock()
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {"c"}, "state": {q.Get("state")}}.Encode(), http.StatusFound)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		now := time.Now()
		claims, _ := json.Marshal(map[string]any{"iss": p.URL, "aud": "gate", "sub": p.user, "nonce": p.nonce, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "auth_time": now.Unix()})
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: "1"}}, nil)
		if err != nil {
			t.Error(err)
			return
		}
		sig, err := s.Sign(claims)
		if err != nil {
			t.Error(err)
			return
		}
		token, err := sig.CompactSerialize()
		if err != nil {
			t.Error(err)
			return
		}
		reply(w, map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": token})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &p.key.PublicKey, KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	})
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) as(user string) {
	p.mu.Lock()
	p.user = user
	p.mu.Unlock()
}

// signIns is a world with sign-in, where one.test is for devices only.
func signIns(t *testing.T) (*world, *provider) {
	w := newWorld(t)
	p := newProvider(t)
	w.write("idp.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})), 0o600)
	w.config(strings.Replace(twoApps, "hosts: [one.test]", "hosts: [one.test]\n    refuse_browser: true", 1) +
		"login: {host: login.test, issuer: '" + p.URL + "', client_id: gate, map: claim, ca_file: idp.pem}\n")
	w.lists(1, 1, user+" "+dev+" "+app1+","+app2, user+" BROWSER0000 "+app2)
	w.start()
	return w, p
}

// browser follows redirects, keeps cookies and has cert unless it is nil.
func (w *world) browser(p *provider, cert *tls.Certificate) *http.Client {
	w.t.Helper()
	c := w.client(cert)
	jar, err := cookiejar.New(nil)
	must(w.t, err)
	c.Jar, c.CheckRedirect = jar, nil
	tr := c.Transport.(*http.Transport)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.ca.RootPEM(keystore.TLSRoot))
	pool.AddCert(p.Certificate())
	tr.TLSClientConfig.RootCAs = pool
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != p.Listener.Addr().String() {
			addr = w.addr
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	c.Transport = page{tr}
	return c
}

// page asks as a person does.
type page struct{ http.RoundTripper }

func (p page) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Accept", "text/html")
	return p.RoundTripper.RoundTrip(r)
}

func TestSignInByBrowserAndByDevice(t *testing.T) {
	w, p := signIns(t)
	plain := w.browser(p, nil)
	w.want(plain, "https://two.test/a", 200, "two.test for "+user)
	if status, _ := w.get(plain, "https://one.test/"); status != 0 {
		t.Errorf("an application for devices answered a browser: %d", status)
	}
	device := w.browser(p, w.certificate("urn:yumen:device:"+dev))
	w.want(device, "https://one.test/a", 200, "one.test for "+user)
	var all []access.SessionInfo
	must(t, w.admin("GET", "/sessions", nil, &all))
	devices := map[string]bool{}
	for _, s := range all {
		devices[s.DeviceID] = true
	}
	if len(all) != 2 || !devices[dev] || !devices[""] {
		t.Errorf("sessions %+v, want one in a browser and one on the device", all)
	}
}

// The two proofs of one request must not name different people or none.
func TestCookieAndCertificateMustAgree(t *testing.T) {
	w, p := signIns(t)
	for name, c := range map[string]struct {
		uris   []string
		status int
		code   string
	}{
		"the device alone":  {[]string{"urn:yumen:device:" + dev}, 200, ""},
		"the same user":     {[]string{"urn:yumen:device:" + dev, "urn:yumen:user:" + user}, 200, ""},
		"two users in one":  {[]string{"urn:yumen:device:" + dev, "urn:yumen:user:" + user, "urn:yumen:user:USR00000002"}, 403, "YM-"},
		"another device":    {[]string{"urn:yumen:device:DEV00000009"}, 403, "YM-3"},
		"no device":         {[]string{"urn:yumen:user:USR00000002"}, 403, "YM-"},
		"an application":    {[]string{"urn:yumen:app:" + app1}, 403, "YM-"},
		"no name at all":    {nil, 403, "YM-"},
		"the browser class": {[]string{"urn:yumen:device:BROWSER0000"}, 403, "YM-"},
	} {
		t.Run(name, func(t *testing.T) {
			b := w.browser(p, w.certificate(c.uris...))
			w.want(b, "https://two.test/", 200, "") // signs in, without a certificate
			status, body := w.get(b, "https://one.test/")
			if status != c.status || !strings.Contains(body, c.code) {
				t.Errorf("%d %s, want %d %s", status, body, c.status, c.code)
			}
		})
	}
	p.as("USR00000002")
	b := w.browser(p, w.certificate("urn:yumen:device:"+dev, "urn:yumen:user:"+user))
	w.want(b, "https://one.test/a", 200, user) // by the certificate
	w.get(b, "https://two.test/")              // signs in as somebody else
	enter := "https://one.test/.yumen/logout"  // the certificate still serves where there is no cookie
	w.want(b, enter, 200, "Sign out")
}

// Signing out ends the session on every device, live flows too, and its cookie
// opens nothing any more, anywhere.
func TestGCR002_M182_SignOutCutsWhatFlowsOnTheDevice(t *testing.T) {
	w, p := signIns(t)
	b := w.browser(p, w.certificate("urn:yumen:device:"+dev))
	w.want(b, "https://one.test/", 200, "")
	one, _ := url.Parse("https://one.test/")
	stolen := b.Jar.Cookies(one)
	end := w.download(b, "https://one.test/big")
	r, err := b.Post("https://one.test/.yumen/logout", "", nil)
	must(t, err)
	r.Body.Close()
	if err := <-end; err == nil {
		t.Error("the download on the device ended well")
	}
	thief := w.browser(p, w.certificate("urn:yumen:device:"+dev))
	thief.Jar.SetCookies(one, stolen)
	thief.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if status, _ := w.get(thief, "https://one.test/"); status != 302 {
		t.Errorf("the cookie of an ended session: %d, want the sign-in", status)
	}
}

// Who is locked reads the administrator's words instead of the sign-in page.
func TestALockedPersonIsToldSo(t *testing.T) {
	w, p := signIns(t)
	b := w.browser(p, nil)
	w.want(b, "https://two.test/", 200, "")
	must(t, w.g.lists.Delta(t.Context(), &ctlclient.Delta{
		NarrowOnly: true, To: 2, Locks: []wire.LockRow{{Kind: "user", ID: user, Message: "请致电 8000"}},
		Revoke: []wire.Revocation{{UserID: user, IssuedBefore: wire.FormatTime(time.Now().Add(time.Minute))}},
	}))
	w.want(b, "https://two.test/", 403, "请致电 8000")
}

// A reload must not sign anybody out.
func TestReloadKeepsSignIns(t *testing.T) {
	w, p := signIns(t)
	b := w.browser(p, nil)
	w.want(b, "https://two.test/", 200, "")
	must(t, w.g.Reload())
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	w.want(b, "https://two.test/", 200, user)
}
