package idp

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
)

const (
	requestLife = 10 * time.Minute // to type a password
	codeLife    = time.Minute
	tokenLife   = 5 * time.Minute
	maxHeld     = 16384 // of each kind
)

// memory holds what is between a login's begin and its end. All of it is short
// lived: a restart costs whoever is typing a password one more click.
type memory struct {
	now func() time.Time

	mu       sync.Mutex
	requests map[string]*request // guarded by mu; by id
	codes    map[string]heldCode // guarded by mu
	tokens   map[string]token    // guarded by mu; access tokens by id
}

type heldCode struct {
	request string
	until   time.Time
}

type token struct {
	user, client string
	scopes       []string
	until        time.Time
}

// request is one authorization request; it implements op.AuthRequest. What the
// login sets is set before done, under memory's lock, on a copy.
type request struct {
	id       string
	browser  string // hash of the cookie of the browser that began it
	in       oidc.AuthRequest
	until    time.Time
	user     string
	authTime time.Time
	done     bool
}

func newMemory(now func() time.Time) *memory {
	return &memory{now: now, requests: map[string]*request{}, codes: map[string]heldCode{}, tokens: map[string]token{}}
}

// randomID returns 192 bits, URL-safe.
func randomID() string {
	raw := make([]byte, 24)
	rand.Read(raw)
	return base64.RawURLEncoding.EncodeToString(raw)
}

// room reports whether one more entry fits, after what is over is dropped.
func room[V any](m map[string]V, over func(V) bool) bool {
	if len(m) < maxHeld {
		return true
	}
	for k, v := range m {
		if over(v) {
			delete(m, k)
		}
	}
	return len(m) < maxHeld
}

// begin keeps r; false means that too many logins are in progress.
func (m *memory) begin(r *request) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if !room(m.requests, func(r *request) bool { return !now.Before(r.until) }) {
		return false
	}
	r.until = now.Add(requestLife)
	m.requests[r.id] = r
	return true
}

// request returns the request id if it is still alive. The value is immutable.
func (m *memory) request(id string) *request {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.requests[id]; r != nil && m.now().Before(r.until) {
		return r
	}
	return nil
}

// finish notes that user has signed in for the request id.
func (m *memory) finish(id, user string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	if r == nil || !m.now().Before(r.until) || r.done {
		return false
	}
	next := *r
	next.user, next.authTime, next.done = user, m.now(), true
	m.requests[id] = &next
	return true
}

func (m *memory) remove(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.requests, id)
}

func (m *memory) putCode(code, id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if !room(m.codes, func(c heldCode) bool { return !now.Before(c.until) }) {
		return false
	}
	m.codes[code] = heldCode{id, now.Add(codeLife)}
	return true
}

// takeCode returns the request of code and forgets both: two exchanges at the
// same moment cannot both succeed, and a wrong verifier spends the code.
func (m *memory) takeCode(code string) *request {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.codes[code]
	delete(m.codes, code)
	if !ok || !m.now().Before(c.until) {
		return nil
	}
	r := m.requests[c.request]
	delete(m.requests, c.request)
	return r
}

func (m *memory) putToken(t token) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if !room(m.tokens, func(t token) bool { return !now.Before(t.until) }) {
		return "", false
	}
	id := randomID()
	m.tokens[id] = t
	return id, true
}

func (m *memory) token(id string) (token, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[id]
	return t, ok && m.now().Before(t.until)
}

func (m *memory) removeToken(id, client string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens[id].client == client {
		delete(m.tokens, id)
	}
}

// end forgets the tokens and requests of user at client; an empty client is
// every one.
func (m *memory) end(user, client string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, t := range m.tokens {
		if t.user == user && (client == "" || t.client == client) {
			delete(m.tokens, id)
		}
	}
	for id, r := range m.requests {
		if r.user == user && (client == "" || r.in.ClientID == client) {
			delete(m.requests, id)
		}
	}
}

// The methods of op.AuthRequest.

func (r *request) GetID() string       { return r.id }
func (r *request) GetACR() string      { return acrPassword }
func (r *request) GetAMR() []string    { return []string{amrPassword} }
func (r *request) GetClientID() string { return r.in.ClientID }
func (r *request) GetAudience() []string {
	return []string{r.in.ClientID}
}
func (r *request) GetAuthTime() time.Time { return r.authTime }
func (r *request) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: r.in.CodeChallenge, Method: r.in.CodeChallengeMethod}
}
func (r *request) GetNonce() string                   { return r.in.Nonce }
func (r *request) GetRedirectURI() string             { return r.in.RedirectURI }
func (r *request) GetResponseType() oidc.ResponseType { return r.in.ResponseType }
func (r *request) GetResponseMode() oidc.ResponseMode { return r.in.ResponseMode }
func (r *request) GetScopes() []string                { return r.in.Scopes }
func (r *request) GetState() string                   { return r.in.State }
func (r *request) GetSubject() string                 { return r.user }
func (r *request) Done() bool                         { return r.done }
