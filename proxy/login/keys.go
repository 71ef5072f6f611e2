package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	asking sync.Mutex // held while the provider is asked
	asked  time.Time  // guarded by asking

	mu   sync.Mutex
	keys jose.JSONWebKeySet // guarded by mu
	got  time.Time          // guarded by mu
}

const (
	keysRetry = 10 * time.Second
	keysLife  = 10 * time.Minute // then they are asked for again; the old ones count while nobody answers
	maxKeys   = 64
	maxKeySet = 1 << 20 // bytes
)

// VerifySignature implements [oidc.KeySet].
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	var algs []jose.SignatureAlgorithm
	for _, a := range algorithms {
		algs = append(algs, jose.SignatureAlgorithm(a))
	}
	jws, err := jose.ParseSignedCompact(token, algs)
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

// named returns the keys that may be meant by kid, "" being any. While one caller
// asks the provider, those who need a new key wait for it, and the others go on
// with the keys that are known.
func (s *keySet) named(ctx context.Context, kid string) []jose.JSONWebKey {
	found, old := s.known(kid)
	switch {
	case len(found) == 0:
		s.asking.Lock()
	case !old || !s.asking.TryLock():
		return found
	}
	defer s.asking.Unlock()
	if found, old = s.known(kid); len(found) > 0 && !old {
		return found // the caller before us has asked
	}
	now := s.provider.cfg.Now()
	if !s.asked.IsZero() && now.Sub(s.asked) < keysRetry {
		return found
	}
	s.asked = now
	keys, err := s.fetch(ctx)
	if err != nil {
		return found
	}
	s.mu.Lock()
	s.keys, s.got = keys, now
	s.mu.Unlock()
	found, _ = s.known(kid)
	return found
}

// known returns those keys of the set that may be meant by kid, and whether the
// set is to be asked for again.
func (s *keySet) known(kid string) (found []jose.JSONWebKey, old bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys.Keys {
		if (kid == "" || k.KeyID == kid) && (k.Use == "" || k.Use == "sig") && k.IsPublic() {
			found = append(found, k)
		}
	}
	return found, s.provider.cfg.Now().Sub(s.got) > keysLife
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
	if err := json.NewDecoder(io.LimitReader(res.Body, maxKeySet)).Decode(&keys); err != nil {
		return keys, err
	}
	if len(keys.Keys) > maxKeys {
		return keys, errors.New("too many keys")
	}
	return keys, nil
}
