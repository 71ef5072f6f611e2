package login

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// bearer verifies access tokens of the provider: JWTs (RFC 9068 and those that
// are like it) with an audience that the configuration names.
type bearer struct {
	keys keySet

	mu    sync.Mutex
	known map[[32]byte]proof // guarded by mu; by the digest of the token
}

// proof is what a token that was verified holds.
type proof struct {
	facts policy.Facts
	bound string    // the certificate that must be shown with it (RFC 8705), or ""
	until time.Time // then it is verified again
}

const (
	maxToken    = 8 << 10
	maxProofs   = 4096
	proofLife   = time.Minute
	maxLifetime = 24 * time.Hour // of an access token; what lives longer is no access token
)

// TakesBearer reports whether access tokens are taken at all.
func (l *Login) TakesBearer() bool { return len(l.cfg.APIAudiences) > 0 }

// Bearer returns the facts that an access token proves, and why it does not.
// peer is the certificate of the connection, or nil. The error is for the log.
func (l *Login) Bearer(ctx context.Context, token string, peer *x509.Certificate) (policy.Facts, reason.Reason, error) {
	if !l.TakesBearer() || len(token) > maxToken {
		return policy.Facts{}, reason.BearerInvalid, errors.New("verify access token: none of its length is taken")
	}
	sum := sha256.Sum256([]byte(token))
	p, why, err := l.proof(ctx, token, sum)
	if why != reason.OK {
		return policy.Facts{}, why, err
	}
	if !l.cfg.Now().Before(p.facts.Expires) {
		return policy.Facts{}, reason.SessionExpired, nil
	}
	if p.bound != "" {
		if peer == nil {
			return policy.Facts{}, reason.BearerInvalid, errors.New("verify access token: it is bound to a certificate, and none was shown")
		}
		if d := sha256.Sum256(peer.Raw); base64.RawURLEncoding.EncodeToString(d[:]) != p.bound {
			return policy.Facts{}, reason.BearerInvalid, errors.New("verify access token: it is bound to another certificate")
		}
	}
	return p.facts, reason.OK, nil
}

// proof returns what token proves, from memory while that is fresh.
func (l *Login) proof(ctx context.Context, token string, sum [32]byte) (proof, reason.Reason, error) {
	now := l.cfg.Now()
	l.bearer.mu.Lock()
	p, known := l.bearer.known[sum]
	l.bearer.mu.Unlock()
	if known && now.Before(p.until) {
		return p, reason.OK, nil
	}
	id, p, err := l.verifyAccess(ctx, token)
	if err != nil {
		if _, away := errors.AsType[*errProvider](err); away {
			return p, reason.UpstreamUnreachable, err
		}
		if _, expired := errors.AsType[*oidc.TokenExpiredError](err); expired {
			return p, reason.SessionExpired, err
		}
		return p, reason.BearerInvalid, err
	}
	user := id.subject
	if l.cfg.Map != "claim" {
		var why reason.Reason
		if user, why = l.cfg.Resolve(ctx, l.cfg.Issuer, id.subject); why != reason.OK {
			return p, why, errors.New("verify access token: nobody maps its subject")
		}
	}
	if !isUser(user) {
		return p, reason.SubjectUnmapped, errNoUser
	}
	p.facts = policy.Facts{
		SessionID: "t" + hex.EncodeToString(sum[:10]), UserID: user, Browser: true,
		Level: int(id.level), Factors: id.factors, AuthTime: id.auth, Expires: p.facts.Expires,
	}
	p.until = now.Add(proofLife)
	l.bearer.mu.Lock()
	defer l.bearer.mu.Unlock()
	if len(l.bearer.known) >= maxProofs || l.bearer.known == nil {
		l.bearer.known = map[[32]byte]proof{}
	}
	l.bearer.known[sum] = p
	return p, reason.OK, nil
}

// verifyAccess checks an access token (RFC 9068 §4): signature, issuer, audience
// and times. Its identity is read as an ID token's.
func (l *Login) verifyAccess(ctx context.Context, token string) (identity, proof, error) {
	if _, err := l.provider.discover(ctx); err != nil {
		return identity{}, proof{}, err
	}
	v := oidc.NewVerifier(l.cfg.Issuer, &l.bearer.keys, &oidc.Config{
		SkipClientIDCheck: true, SupportedSigningAlgs: algorithms, Now: l.cfg.Now,
	})
	tok, err := v.Verify(ctx, token)
	if err != nil {
		return identity{}, proof{}, fmt.Errorf("verify access token: %w", err)
	}
	if !slices.ContainsFunc(tok.Audience, func(a string) bool { return slices.Contains(l.cfg.APIAudiences, a) }) {
		return identity{}, proof{}, fmt.Errorf("verify access token: audience %q is none of login.api_audiences", tok.Audience)
	}
	if life := tok.Expiry.Sub(tok.IssuedAt); life > maxLifetime {
		return identity{}, proof{}, fmt.Errorf("verify access token: it lives for %v, at most %v", life, maxLifetime)
	}
	var claims map[string]any
	if err := tok.Claims(&claims); err != nil {
		return identity{}, proof{}, fmt.Errorf("verify access token: %w", err)
	}
	if claims["nonce"] != nil || claims["at_hash"] != nil {
		return identity{}, proof{}, errors.New("verify access token: it is an ID token")
	}
	p := proof{facts: policy.Facts{Expires: tok.Expiry}}
	if c, ok := claims["cnf"].(map[string]any); ok {
		if p.bound, _ = c["x5t#S256"].(string); p.bound == "" {
			return identity{}, proof{}, errors.New("verify access token: it is bound to a key in a way that is not known here")
		}
	}
	id, err := l.provider.identity(tok.IssuedAt, claims)
	return id, p, err
}
