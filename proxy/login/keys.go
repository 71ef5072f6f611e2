package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// algorithms are those by which tokens may be signed.
var algorithms = []string{oidc.ES256, oidc.ES384, oidc.RS256, oidc.PS256, oidc.EdDSA}

// keySet holds the provider's keys. A token with an unknown key makes it ask
// again, but strangers cannot make it ask more often than once in keysRetry.
type keySet struct {
	provider *provider

	mu    sync.Mutex
	keys  jose.JSONWebKeySet // guarded by mu
	asked time.Time          // guarded by mu
	got   time.Time          // guarded by mu
}

const (
	keysRetry = 10 * time.Second
	keysLife  = 10 * time.Minute // then they are asked for again; the old ones count while nobody answers
	maxKeys   = 64
)

// VerifySignature implements [oidc.KeySet].
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	var algs []jose.SignatureAlgorithm
	for _, a := range algorithms {
		algs = append(algs, jose.SignatureAlgorithm(a))
	}
	jws, err := jose.ParseSigned(token, algs)
	if err != nil {
		return nil, err
	}
	if len(jws.Signatures) != 1 {
		return nil, errors.New("not one signature")
	}
	kid := jws.Signatures[0].Header.KeyID
	for _, k := range s.named(ctx, kid) {
		if b, err := jws.Verify(k); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("no key of the provider verifies it (kid %.40q)", kid)
}

// named returns the keys that may be meant by kid, "" being any.
func (s *keySet) named(ctx context.Context, kid string) []jose.JSONWebKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	find := func() (out []jose.JSONWebKey) {
		for _, k := range s.keys.Keys {
			if (kid == "" || k.KeyID == kid) && (k.Use == "" || k.Use == "sig") && k.IsPublic() {
				out = append(out, k)
			}
		}
		return out
	}
	now := s.provider.cfg.Now()
	found := find()
	if (len(found) == 0 || now.Sub(s.got) > keysLife) && (s.asked.IsZero() || now.Sub(s.asked) >= keysRetry) {
		s.asked = now
		if keys, err := s.fetch(ctx); err == nil {
			s.keys, s.got = keys, now
			found = find()
		}
	}
	return found
}

func (s *keySet) fetch(ctx context.Context) (keys jose.JSONWebKeySet, err error) {
	found, err := s.provider.discover(ctx)
	if err != nil {
		return keys, err
	}
	var meta struct {
		URI string `json:"jwks_uri"`
	}
	if err := found.Claims(&meta); err != nil {
		return keys, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), providerTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, meta.URI, nil)
	if err != nil {
		return keys, err
	}
	res, err := s.provider.client.Do(r)
	if err != nil {
		return keys, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return keys, fmt.Errorf("status %d", res.StatusCode)
	}
	if err := json.NewDecoder(res.Body).Decode(&keys); err != nil {
		return keys, err
	}
	if len(keys.Keys) > maxKeys {
		return keys, errors.New("too many keys")
	}
	return keys, nil
}
