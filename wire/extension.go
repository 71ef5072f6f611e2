package wire

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The messages of this file are Yumen's documented extensions (Q33): the
// standard says what a list holds, but not how one is versioned, signed, paged
// or changed. They are no tables, so they are no [Message]; DecodeExtension
// reads them and their Check methods check them.

// ListName names one of the two lists of clause 7.3.
type ListName string

// The two lists.
const (
	GrantsList   ListName = "grants"   // Tables 6 and 7
	PoliciesList ListName = "policies" // Tables 8 and 9
)

// The msgType of each extension message, as the envelope's header spells it.
const (
	TypeManifest = "X.manifest"
	TypeDelta    = "X.delta"
	TypeAck      = "X.ack"
	TypeSubject  = "X.subject"
	TypeHello    = "X.hello"
	TypeLogout   = "X.logout"
)

// The keys of header.ext that the links use (Q31).
const (
	ExtSigner        = "signer"        // manifest, page, delta: base64 DER chain of the list signer, leaf first
	ExtRows          = "rows"          // T6 page: []RowFacts
	ExtListVersion   = "listVersion"   // T4, T10: the grants' version, a string
	ExtPolicyVersion = "policyVersion" // T4, T10: the policies' version, a string
	ExtState         = "state"         // T10: start, run, stop
	ExtOutbox        = "outbox"        // from an outbox: OutboxNumber; in its reply: OutboxAcks
	ExtPending       = "pending"       // T10, T21: records that wait
	ExtStateHash     = "stateHash"     // T4, T10: StateHash
	ExtFreshness     = "freshness"     // T10: Freshness
	ExtNonce         = "nonce"         // T4 and its T5: 16 random bytes, base64; the answer proves that it is fresh
	ExtDiffers       = "differs"       // T5: []ListName whose state hash is not the control center's
	ExtDropped       = "dropped"       // T10, T21: records dropped since the start
	ExtGateways      = "gateways"      // T19: []GatewayRef
	ExtResources     = "resources"     // T19: []ResourceFacts
	ExtUserID        = "userId"        // T18: who is signed in, when the name that T16 carried is not the userId
	ExtMessage       = "message"       // T18, T19: the operator's words to the person whom a lock shuts out
	ExtFacts         = "facts"         // T12 and T1 style context; reserved
)

// The limits of a list. What is beyond them is refused before it is read.
const (
	MaxListPages = 4096
	MaxListRows  = 4 << 20
)

// Manifest is the body of X.manifest: the first line of a list. Nothing of a
// list counts before every page that the manifest names has been verified.
type Manifest struct {
	List     ListName       `json:"list"`
	Version  uint64         `json:"version,string"`
	NotAfter string         `json:"notAfter"` // the list is worth nothing after this time
	Receiver string         `json:"receiver"` // gatewayId
	Rows     int            `json:"rows"`
	Pages    []ManifestPage `json:"pages"`
	Locks    []LockRow      `json:"locks,omitempty"` // in the policies' manifest
}

// ManifestPage describes one line after the manifest.
type ManifestPage struct {
	SM3   string `json:"sm3"`   // PageHash of the line
	Bytes int    `json:"bytes"` // length of the line without its line feed
}

// PageHash returns the SM3 of one page's line, without its line feed, in
// lower-case hexadecimal.
func PageHash(line []byte) string {
	h := sm3.Sum(line)
	return hex.EncodeToString(h[:])
}

// Check reports what is wrong with m's own figures. Whose list it is, how new
// and by whom, is for the receiver.
func (m *Manifest) Check() error {
	switch {
	case m.List != GrantsList && m.List != PoliciesList:
		return fmt.Errorf("check manifest: list %q (grants or policies)", m.List)
	case m.Version == 0:
		return errors.New("check manifest: version 0")
	case m.Receiver == "":
		return errors.New("check manifest: no receiver")
	case m.Rows < 0 || m.Rows > MaxListRows:
		return fmt.Errorf("check manifest: %d rows, at most %d", m.Rows, MaxListRows)
	case len(m.Pages) > MaxListPages:
		return fmt.Errorf("check manifest: %d pages, at most %d", len(m.Pages), MaxListPages)
	case m.List == GrantsList && len(m.Locks) > 0:
		return errors.New("check manifest: locks stand in the policies' manifest")
	}
	if _, err := ParseTime(m.NotAfter); err != nil {
		return fmt.Errorf("check manifest: notAfter: %w", err)
	}
	for i, p := range m.Pages {
		if len(p.SM3) != 64 || p.Bytes <= 0 || p.Bytes > MaxMessage {
			return fmt.Errorf("check manifest: page %d: %d bytes, hash of %d characters", i, p.Bytes, len(p.SM3))
		}
	}
	return nil
}

// RowFacts carries what no table has a field for, for one row of Table 7
// (Q31). An absent value fails each policy that asks for it.
type RowFacts struct {
	I        int    `json:"i"` // the row's index in its page or delta
	Level    int    `json:"level,omitzero"`
	Factors  []int  `json:"factors,omitempty"`  // types of Table 17
	AuthTime string `json:"authTime,omitempty"` // when the user signed in
	Posture  *int   `json:"posture,omitempty"`  // 0 to 100, high is good
	Risk     *int   `json:"risk,omitempty"`     // 0 to 100, high is bad
}

// LockRow denies everything to what it names, and wins over every grant.
type LockRow struct {
	Kind    string `json:"kind"` // user, device, agent, app, session
	ID      string `json:"id"`
	Message string `json:"message,omitempty"`
	Until   string `json:"until,omitempty"` // empty: until it is taken away
}

// LockRef names a lock that ends.
type LockRef struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
}

// PairRef names the row of a user on a device.
type PairRef struct {
	UserID   string `json:"userId"`
	DeviceID string `json:"deviceId"`
}

// Revocation ends sessions: one by its id, or those of a user that began
// before a time.
type Revocation struct {
	UserID       string `json:"userId,omitempty"`
	IssuedBefore string `json:"issuedBefore,omitempty"`
	SessionID    string `json:"sessionId,omitempty"`
}

// Delta is the body of X.delta: one change of the grants. What it takes away
// holds at once, even when From is not the receiver's version; what it gives
// counts only when From is.
type Delta struct {
	From      uint64       `json:"from,string"`
	To        uint64       `json:"to,string"`
	Timestamp string       `json:"timestamp"`
	Remove    []PairRef    `json:"remove,omitempty"`
	Grants    []Grant      `json:"grants,omitempty"` // each replaces the row of its user and device
	Ext       []RowFacts   `json:"ext,omitempty"`
	Locks     []LockRow    `json:"locks,omitempty"`
	Unlocks   []LockRef    `json:"unlocks,omitempty"`
	Revoke    []Revocation `json:"revoke,omitempty"`
}

// DeltaRef is the data of the push stream's "changed" event: a list to pull.
type DeltaRef struct {
	List    ListName `json:"list"`
	Version uint64   `json:"version,string"`
}

// Ack is the body of X.ack: the gateway applied a list or a delta, or says why
// it did not.
type Ack struct {
	Version uint64   `json:"version,string"`
	List    ListName `json:"list"`
	Applied bool     `json:"applied"`
	Result  string   `json:"result"`
}

// Logout is the body of X.logout: a person has signed out at a gateway, and the
// session must end at the others.
type Logout struct {
	SessionID string `json:"sessionId"` // of the sign-in
	Until     string `json:"until"`     // no cookie of it lives longer
}

// Check reports what is wrong with m.
func (m *Logout) Check() error {
	if n := len(m.SessionID); n == 0 || n > 64 || strings.ContainsFunc(m.SessionID, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return errors.New("check log-out: sessionId has 1 to 64 printable characters and no slash")
	}
	if _, err := ParseTime(m.Until); err != nil {
		return fmt.Errorf("check log-out: until: %w", err)
	}
	return nil
}

// SubjectQuery is the body of X.subject, asked: who is this subject of an
// identity provider (Q26)?
type SubjectQuery struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// SubjectReply is the body of X.subject, answered.
type SubjectReply struct {
	UserID string `json:"userId"`
}

// TunnelHello is the body of X.hello, the first MESSAGE of a tunnel, sealed to
// the gateway. Key is the SM4 key for Tables 12 to 15 on this tunnel; it is
// never logged.
type TunnelHello struct {
	AgentID   string `json:"agentId"`
	DeviceID  string `json:"deviceId"`
	UserID    string `json:"userId"`
	AuthToken string `json:"authToken"`
	Key       []byte `json:"key"` // 16 bytes
	Version   int    `json:"version"`
	// Tunnel names a tunnel that may have several connections: 16 random bytes of
	// the agent's, in the hello of each. Join asks to be another connection of it.
	Tunnel []byte `json:"tunnel,omitempty"`
	Join   bool   `json:"join,omitempty"`
}

// String hides the key and the token.
func (h TunnelHello) String() string {
	return fmt.Sprintf("hello of %s for %s on %s", h.AgentID, h.UserID, h.DeviceID)
}

// GatewayRef tells an agent of one gateway: an element of header.ext.gateways
// of Table 19.
type GatewayRef struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses"`        // host:port
	Sign      []byte   `json:"sign"`             // DER of the message signing certificate
	Enc       []byte   `json:"enc"`              // DER of the encryption certificate
	Permit    *Permit  `json:"permit,omitempty"` // for its guard; nil: it has none
}

// ResourceFacts carries what Table 20 has no field for (Q32): an element of
// header.ext.resources of Table 19.
type ResourceFacts struct {
	I        int      `json:"i"` // the row's index
	Hosts    []string `json:"hosts,omitempty"`
	Protocol string   `json:"protocol,omitempty"` // tcp (default) or udp
}

// DecodeExtension reads an extension message: exact case, no duplicate keys,
// nothing behind the value; unknown keys are left alone, so that a newer peer
// may say more. If M has a Check method, it must agree.
func DecodeExtension[M any](raw []byte) (*M, error) {
	if len(raw) > MaxMessage {
		return nil, fmt.Errorf("decode %T: %w: %d bytes, at most %d", *new(M), ErrTooLarge, len(raw), MaxMessage)
	}
	if nested(raw) > MaxDepth {
		return nil, fmt.Errorf("decode %T: %w: at most %d levels", *new(M), ErrTooDeep, MaxDepth)
	}
	m := new(M)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("decode %T: %w", *m, err)
	}
	if jsontext.Value(raw).Kind() != jsontext.KindBeginObject { // null leaves m empty and is no error
		return nil, fmt.Errorf("decode %T: not an object", *m)
	}
	if c, ok := any(m).(interface{ Check() error }); ok {
		if err := c.Check(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// EncodeExtension writes an extension message compactly.
func EncodeExtension(m any) ([]byte, error) {
	b, err := json.Marshal(m, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	return b, nil
}

// HeartbeatHeader is the HTTP field of a push stream's answer that says how
// often it beats, in milliseconds.
const HeartbeatHeader = "Yumen-Heartbeat-Ms"
