package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/yumen-zt/yumen/access/policy"
)

// Applications fetch the keys of assertions from this path of their own host.
const jwksPath = "/.well-known/yumen/jwks.json"

const (
	assertionLife = time.Minute
	assertionSlot = assertionLife / 2 // so long one token serves a session: every token has half a life left
	maxAssertions = 16384             // of one slot; beyond, each request is signed
)

// assertions makes the signed identity of X-Yumen-Assertion (M153): a JWT by
// ES256 with iss (the gateway), aud (appId), sub (userId), device, level, sid,
// iat, exp and jti. It serves the public key, too.
type assertions struct {
	signer jose.Signer
	issuer string
	now    func() time.Time
	jwks   []byte

	mu   sync.Mutex
	slot int64                   // guarded by mu
	made map[assertionKey]string // guarded by mu; of slot alone
}

type assertionKey struct {
	session, user, device, app string
	level                      int
}

type claims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"`
	Device   string `json:"device,omitempty"`
	Level    int    `json:"level"`
	Session  string `json:"sid"`
	IssuedAt int64  `json:"iat"`
	Expiry   int64  `json:"exp"`
	ID       string `json:"jti"`
}

// newAssertions signs with the first key and publishes all of them.
func newAssertions(keys []crypto.Signer, gatewayID string, now func() time.Time) (*assertions, error) {
	if len(keys) == 0 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make assertion key: %w", err)
		}
		keys = []crypto.Signer{k}
	}
	var set jose.JSONWebKeySet
	for _, key := range keys {
		pub, ok := key.Public().(*ecdsa.PublicKey)
		if !ok || pub.Curve != elliptic.P256() {
			return nil, errors.New("use assertion key: a P-256 key is needed")
		}
		jwk := jose.JSONWebKey{Key: pub, Algorithm: string(jose.ES256), Use: "sig"}
		print, err := jwk.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("name assertion key: %w", err)
		}
		jwk.KeyID = base64.RawURLEncoding.EncodeToString(print[:12])
		set.Keys = append(set.Keys, jwk)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cryptosigner.Opaque(keys[0])},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", set.Keys[0].KeyID))
	if err != nil {
		return nil, fmt.Errorf("use assertion key: %w", err)
	}
	jwks, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("publish assertion key: %w", err)
	}
	return &assertions{signer: signer, issuer: gatewayID, now: now, jwks: jwks, made: map[assertionKey]string{}}, nil
}

// token returns the assertion of a subject for one application at now. It is
// safe for concurrent use.
func (a *assertions) token(f *policy.Facts, appID string, now time.Time) (string, error) {
	slot := now.UnixNano() / int64(assertionSlot)
	k := assertionKey{f.SessionID, f.UserID, f.DeviceID, appID, f.Level}
	a.mu.Lock()
	if slot != a.slot {
		a.slot = slot
		clear(a.made)
	}
	t, ok := a.made[k]
	a.mu.Unlock()
	if ok {
		return t, nil
	}
	t, err := a.sign(k, now)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	a.mu.Lock()
	if slot == a.slot && len(a.made) < maxAssertions {
		a.made[k] = t
	}
	a.mu.Unlock()
	return t, nil
}

func (a *assertions) sign(k assertionKey, now time.Time) (string, error) {
	body, err := json.Marshal(claims{
		Issuer: a.issuer, Audience: k.app, Subject: k.user, Device: k.device, Level: k.level, Session: k.session,
		IssuedAt: now.Unix(), Expiry: now.Add(assertionLife).Unix(), ID: newRequestID(),
	})
	if err != nil {
		return "", err
	}
	o, err := a.signer.Sign(body)
	if err != nil {
		return "", err
	}
	return o.CompactSerialize()
}

// ServeHTTP serves the key set.
func (a *assertions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=60")
	_, _ = w.Write(a.jwks)
}
