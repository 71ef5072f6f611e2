package idp

import (
	"context"
	"crypto/subtle"
	"errors"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// storage is the provider as zitadel/oidc asks for it.
type storage struct{ p *Provider }

var _ op.Storage = (*storage)(nil)

type browserKey struct{}

var errUnknown = errors.New("unknown or expired")

func (s *storage) CreateAuthRequest(ctx context.Context, in *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	if slices.Contains(in.Prompt, "none") {
		return nil, oidc.ErrLoginRequired() // nobody stays signed in here: the gateways keep the sessions
	}
	if in.CodeChallenge == "" || in.CodeChallengeMethod != oidc.CodeChallengeMethodS256 {
		return nil, oidc.ErrInvalidRequest().WithDescription("code_challenge with S256 is required")
	}
	browser, _ := ctx.Value(browserKey{}).(string)
	r := &request{id: randomID(), browser: browser, in: *in}
	if browser == "" || !s.p.mem.begin(r) {
		return nil, oidc.ErrServerError().WithDescription("too many logins in progress")
	}
	return r, nil
}

func (s *storage) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	if r := s.p.mem.request(id); r != nil {
		return r, nil
	}
	return nil, errUnknown
}

func (s *storage) AuthRequestByCode(_ context.Context, code string) (op.AuthRequest, error) {
	r := s.p.mem.takeCode(code)
	if r == nil {
		return nil, errUnknown
	}
	if _, ok := s.p.cfg.Account(r.user); !ok {
		return nil, errUnknown
	}
	return r, nil
}

func (s *storage) SaveAuthCode(_ context.Context, id, code string) error {
	if !s.p.mem.putCode(code, id) {
		return errors.New("too many codes")
	}
	return nil
}

func (s *storage) DeleteAuthRequest(_ context.Context, id string) error {
	s.p.mem.remove(id)
	return nil
}

func (s *storage) CreateAccessToken(_ context.Context, r op.TokenRequest) (string, time.Time, error) {
	t := token{user: r.GetSubject(), scopes: r.GetScopes(), until: s.p.cfg.Now().Add(tokenLife)}
	if a, ok := r.(*request); ok {
		t.client = a.in.ClientID
	}
	id, ok := s.p.mem.putToken(t)
	if !ok {
		return "", time.Time{}, errors.New("too many tokens")
	}
	return id, t.until, nil
}

func (s *storage) CreateAccessAndRefreshTokens(context.Context, op.TokenRequest, string) (string, string, time.Time, error) {
	return "", "", time.Time{}, oidc.ErrUnsupportedGrantType()
}

func (s *storage) TokenRequestByRefreshToken(context.Context, string) (op.RefreshTokenRequest, error) {
	return nil, oidc.ErrUnsupportedGrantType()
}

func (s *storage) GetRefreshTokenInfo(context.Context, string, string) (string, string, error) {
	return "", "", op.ErrInvalidRefreshToken
}

func (s *storage) TerminateSession(_ context.Context, userID, clientID string) error {
	s.p.mem.end(userID, clientID)
	s.p.cfg.Audit(Event{What: "logout", User: userID, Client: clientID})
	return nil
}

func (s *storage) RevokeToken(_ context.Context, id, _, clientID string) *oidc.Error {
	s.p.mem.removeToken(id, clientID)
	return nil
}

// signingKey and publicKey are a key as zitadel/oidc asks for it.
type (
	signingKey struct{ k Key }
	publicKey  struct{ k Key }
)

func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k signingKey) Key() any                                    { return k.k.Key }
func (k signingKey) ID() string                                  { return k.k.ID }
func (k publicKey) Algorithm() jose.SignatureAlgorithm           { return jose.ES256 }
func (k publicKey) Key() any                                     { return &k.k.Key.PublicKey }
func (k publicKey) ID() string                                   { return k.k.ID }
func (k publicKey) Use() string                                  { return "sig" }

func (s *storage) SigningKey(context.Context) (op.SigningKey, error) {
	return signingKey{s.p.cfg.Keys[0]}, nil
}

func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

func (s *storage) KeySet(context.Context) ([]op.Key, error) {
	var keys []op.Key
	for _, k := range s.p.cfg.Keys {
		keys = append(keys, publicKey{k})
	}
	return keys, nil
}

func (s *storage) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	for i := range s.p.cfg.Clients {
		if c := &s.p.cfg.Clients[i]; c.ID == id {
			return client{c}, nil
		}
	}
	return nil, errUnknown
}

func (s *storage) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	for i := range s.p.cfg.Clients {
		c := &s.p.cfg.Clients[i]
		if c.ID == id && c.Secret != "" && subtle.ConstantTimeCompare([]byte(c.Secret), []byte(secret)) == 1 {
			return nil
		}
	}
	return errUnknown
}

func (s *storage) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}

// SetUserinfoFromRequest fills the id_token.
func (s *storage) SetUserinfoFromRequest(_ context.Context, u *oidc.UserInfo, r op.IDTokenRequest, scopes []string) error {
	return s.userinfo(u, r.GetSubject(), scopes)
}

func (s *storage) SetUserinfoFromToken(_ context.Context, u *oidc.UserInfo, id, _, _ string) error {
	t, ok := s.p.mem.token(id)
	if !ok {
		return errUnknown
	}
	return s.userinfo(u, t.user, t.scopes)
}

func (s *storage) userinfo(u *oidc.UserInfo, user string, scopes []string) error {
	a, ok := s.p.cfg.Account(user)
	if !ok {
		return errUnknown
	}
	for _, scope := range scopes {
		switch scope {
		case oidc.ScopeOpenID:
			u.Subject = a.ID
		case oidc.ScopeProfile:
			u.PreferredUsername, u.Name = a.Name, a.Display
		}
	}
	return nil
}

func (s *storage) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return errUnknown
}

func (s *storage) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, nil
}

func (s *storage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, errUnknown
}

func (s *storage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, oidc.ErrUnsupportedGrantType()
}

func (s *storage) Health(context.Context) error { return nil }

// client is a relying party as zitadel/oidc asks for it.
type client struct{ c *Client }

func (c client) GetID() string                       { return c.c.ID }
func (c client) RedirectURIs() []string              { return c.c.RedirectURIs }
func (c client) PostLogoutRedirectURIs() []string    { return c.c.LogoutURIs }
func (c client) ApplicationType() op.ApplicationType { return op.ApplicationTypeWeb }
func (c client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (c client) GrantTypes() []oidc.GrantType        { return []oidc.GrantType{oidc.GrantTypeCode} }
func (c client) LoginURL(id string) string           { return "/login?request=" + id }
func (c client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeBearer }
func (c client) IDTokenLifetime() time.Duration      { return tokenLife }
func (c client) DevMode() bool                       { return false }
func (c client) IsScopeAllowed(string) bool          { return false }
func (c client) IDTokenUserinfoClaimsAssertion() bool {
	return true // the name is in the id_token: one request less
}
func (c client) ClockSkew() time.Duration { return 0 }
func (c client) AuthMethod() oidc.AuthMethod {
	if c.c.Secret == "" {
		return oidc.AuthMethodNone
	}
	return oidc.AuthMethodBasic
}

func all(scopes []string) []string { return scopes }

func (c client) RestrictAdditionalIdTokenScopes() func([]string) []string     { return all }
func (c client) RestrictAdditionalAccessTokenScopes() func([]string) []string { return all }
