// Package model is what the control center knows: users, devices, applications,
// grants, policies, locks and live authentications, and the pure rule that
// makes the rows of Table 7 (CSA GCR 002-2025 §7.3.2) out of them.
//
// [State] is fed with the store's transactions and says for each what changed
// in the lists; nothing here does I/O, keeps time or starts a goroutine.
package model

import (
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// Browser is the device class of sessions without a device certificate (Q27).
const Browser = "BROWSER0000"

// Values of [Grant].Device beside a device's identifier.
const (
	AnyDevice     = "any"     // every enrolled device on which the user is authenticated
	BrowserDevice = "browser" // browsers without a device certificate
)

// The prefixes of the store's keys.
const (
	KeyUser       = "user/"       // + userId → User
	KeyParty      = "party/"      // + gatewayId, agentId or appId → Party
	KeyApp        = "app/"        // + appId → App
	KeyGrant      = "grant/"      // + id → Grant
	KeyPolicy     = "policy/"     // + policyId → wire.Policy
	KeyLock       = "lock/"       // + kind/id → Lock
	KeySession    = "session/"    // + userId/deviceId → Session
	KeySubject    = "subject/"    // + digest of issuer and subject → Subject
	KeyRevocation = "revocation/" // + userId, or s/ and the id of a session → Revocation
	KeyRefresh    = "refresh"     // written to give the lists a new version
	KeySequence   = "sequence/"   // + prefix of an identifier → the last number given
)

// User is a person with a local account.
type User struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`             // what the person types to sign in
	Display  string    `json:"display"`          // full name
	Password string    `json:"password"`         // PHC string
	Changed  time.Time `json:"changed,omitzero"` // last change of the password
}

// Kinds of parties.
const (
	Gateway     = wire.EnrolGateway
	Agent       = wire.EnrolAgent
	Application = wire.EnrolApp
)

// Party is an enrolled device: a gateway, an agent or an application's
// connector. Before its enrolment it has a code and no certificates.
type Party struct {
	Kind      string     `json:"kind"`
	ID        string     `json:"id"`        // gatewayId, agentId or appId
	DeviceID  string     `json:"device_id"` // none for an application
	Name      string     `json:"name"`
	Type      string     `json:"type"`      // deviceType
	System    string     `json:"system"`    // systemType
	UserID    string     `json:"user_id"`   // only this user may use the device; empty: any
	Addresses []string   `json:"addresses"` // host:port that agents dial, of a gateway
	TLS       []byte     `json:"tls"`       // DER
	TLCP      []byte     `json:"tlcp"`      // DER of the signing certificate, which is who it is over TLCP
	Sign      []byte     `json:"sign"`
	Enc       []byte     `json:"enc"`
	Enrolled  time.Time  `json:"enrolled,omitzero"`
	Code      *Enrolment `json:"code,omitempty"`
	Posture   *int       `json:"posture,omitempty"` // 0 to 100, high is good; an operator's word, in place of Seen
	Risk      *int       `json:"risk,omitempty"`    // 0 to 100, high is bad

	Device *wire.Posture `json:"device,omitempty"` // as its agent reported it last; immutable
	Seen   *int          `json:"seen,omitempty"`   // the points of Device
}

// Enrolment is a one-time code at rest.
type Enrolment struct {
	Hash  []byte    `json:"hash"` // SM3 of the secret
	Until time.Time `json:"until"`
	Tries int       `json:"tries"` // wrong secrets so far
}

// App is a registered application.
type App struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"` // host:port with an IP literal, Table 20
	Hosts     []string `json:"hosts"`     // names that agents map to it (Q32)
	Protocol  string   `json:"protocol"`  // tcp or udp
	Level     int      `json:"level"`     // lowest sign-in level, informative here
}

// Grant gives one user some applications from one device or class.
type Grant struct {
	ID     string    `json:"id"`
	UserID string    `json:"user_id"`
	Device string    `json:"device"` // a deviceId, AnyDevice or BrowserDevice
	Apps   []string  `json:"apps"`
	Until  time.Time `json:"until,omitzero"` // zero: no end
}

// covers reports whether g counts for a row of device at now. It ends a little
// early, so that the row which follows it is there in time.
func (g *Grant) covers(device string, now time.Time) bool {
	if !g.Until.IsZero() && !now.Before(g.Until.Add(-EarlyEnd)) {
		return false
	}
	if device == Browser {
		return g.Device == BrowserDevice
	}
	return g.Device == device || g.Device == AnyDevice
}

// EarlyEnd is how long before its end a grant stops to count. A row ends with
// the first of its grants, so the row without that grant must be there before.
const EarlyEnd = 2 * time.Second

// Kinds of locks.
var LockKinds = []string{"user", "device", "agent", "app", "session"}

// LockRef names a lock.
type LockRef struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
}

// Lock shuts what it names out, at once.
type Lock struct {
	LockRef
	Message string    `json:"message"` // shown to the person
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until,omitzero"`
}

// Pair names a row of Table 7.
type Pair struct{ User, Device string }

// Session is a user who is authenticated on a device (Tables 16 and 18).
type Session struct {
	UserID   string    `json:"user_id"`
	DeviceID string    `json:"device_id"`
	AgentID  string    `json:"agent_id"`
	Token    string    `json:"token"`
	Issued   time.Time `json:"issued"`
	Expires  time.Time `json:"expires"` // of the token
	AuthTime time.Time `json:"auth_time"`
	Ends     time.Time `json:"ends"` // the user must sign in again
	Level    int       `json:"level"`
	Factors  []int     `json:"factors"`
}

// Subject maps an account of an identity provider to a user (Q26).
type Subject struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
	UserID  string `json:"user_id"`
}

// Revocation ends a user's sessions that began before a time, or one session
// that was signed out. It is kept until Until, for gateways that were away.
type Revocation struct {
	UserID       string    `json:"user_id,omitzero"`
	IssuedBefore time.Time `json:"issued_before,omitzero"`
	SessionID    string    `json:"session_id,omitzero"` // in place of both: this session, however old
	Until        time.Time `json:"until"`
}

// Row is a row of Table 7 with its facts.
type Row struct {
	Pair
	Token    string
	Expires  time.Time
	Apps     []string // ascending
	Level    int
	Factors  []int
	AuthTime time.Time
	Posture  *int
	Risk     *int
	Sum      wire.Sum // of all of it, for the state hash; not compared
}

// sum hashes r as gateways get it.
func (r *Row) sum() wire.Sum {
	g, f := r.Grant(), r.Facts(0)
	return wire.RowSum(wire.GrantDigest(&g, &f))
}

func policySum(p *wire.Policy) wire.Sum { return wire.RowSum(wire.PolicyDigest(p)) }

func (l *Lock) sum() wire.Sum {
	row := l.Wire()
	return wire.RowSum(wire.LockDigest(&row))
}

// Equal reports whether r and o say the same.
func (r *Row) Equal(o *Row) bool {
	same := func(a, b *int) bool { return a == b || a != nil && b != nil && *a == *b }
	return r.Pair == o.Pair && r.Token == o.Token && r.Expires.Equal(o.Expires) && slices.Equal(r.Apps, o.Apps) &&
		r.Level == o.Level && slices.Equal(r.Factors, o.Factors) && r.AuthTime.Equal(o.AuthTime) &&
		same(r.Posture, o.Posture) && same(r.Risk, o.Risk)
}

// Grant returns r as Table 7 has it.
func (r *Row) Grant() wire.Grant {
	return wire.Grant{
		UserID: r.User, DeviceID: r.Device, AuthenticationToken: r.Token,
		ExpirationDate: wire.FormatTime(r.Expires), AppIDList: r.Apps,
	}
}

// Facts returns what Table 7 has no field for; i is the row's index.
func (r *Row) Facts(i int) wire.RowFacts {
	f := wire.RowFacts{I: i, Level: r.Level, Factors: r.Factors, Posture: r.Posture, Risk: r.Risk}
	if !r.AuthTime.IsZero() {
		f.AuthTime = wire.FormatTime(r.AuthTime)
	}
	return f
}

// Wire returns l as lists and deltas have it.
func (l *Lock) Wire() wire.LockRow {
	w := wire.LockRow{Kind: l.Kind, ID: l.ID, Message: l.Message}
	if !l.Until.IsZero() {
		w.Until = wire.FormatTime(l.Until)
	}
	return w
}

// RevokedSessionKey returns the store's key of the revocation of one session.
func RevokedSessionKey(sessionID string) string { return KeyRevocation + "s/" + sessionID }

// pairOf reads the key of a session.
func pairOf(key string) Pair {
	user, device, _ := strings.Cut(strings.TrimPrefix(key, KeySession), "/")
	return Pair{user, device}
}

// SessionKey returns the store's key of a session.
func SessionKey(p Pair) string { return KeySession + p.User + "/" + p.Device }

// LockKey returns the store's key of a lock.
func LockKey(r LockRef) string { return KeyLock + r.Kind + "/" + r.ID }
