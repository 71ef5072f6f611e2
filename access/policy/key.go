package policy

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"hash"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/emmansun/gmsm/sm3"
)

// TokenKey is the per-process key under which tokens are indexed, by HMAC-SM3.
// Looking a token up compares digests that an attacker can neither choose nor
// see, so the time of a look-up says nothing of the tokens in the list. It is
// safe for concurrent use.
type TokenKey struct {
	pool sync.Pool // of hash.Hash keyed with the key
	seed maphash.Seed
}

// NewTokenKey returns a fresh random key.
func NewTokenKey() *TokenKey {
	key := make([]byte, 32)
	rand.Read(key) // never fails: crypto/rand ends the process instead
	k := &TokenKey{seed: maphash.MakeSeed()}
	k.pool.New = func() any { return hmac.New(sm3.New, key) }
	return k
}

// mac is a truncated HMAC-SM3 of a token; the zero mac stands for no token.
type mac [16]byte

func (k *TokenKey) mac(token string) mac {
	if token == "" {
		return mac{}
	}
	h := k.pool.Get().(hash.Hash)
	defer k.pool.Put(h)
	h.Reset()
	h.Write([]byte(token))
	var sum [sm3.Size]byte
	h.Sum(sum[:0])
	return mac(sum[:16])
}

func (m mac) hash() uint64 { return binary.LittleEndian.Uint64(m[:8]) }

// id is an identifier of at most 11 bytes without a pointer: rows hold no
// pointers, so a list of any size costs the garbage collector nothing. The
// last byte is the length.
type id [12]byte

func makeID(s string) (id, bool) {
	var d id
	if len(s) == 0 || len(s) > 11 {
		return d, false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return id{}, false
		}
	}
	copy(d[:11], s)
	d[11] = byte(len(s))
	return d, true
}

func (d id) String() string { return string(d[:min(int(d[11]), 11)]) }

// pair is a (user, device) of Table 7.
type pair struct{ user, device id }

func (k *TokenKey) hash(p pair) uint64 {
	var b [24]byte
	copy(b[:12], p.user[:])
	copy(b[12:], p.device[:])
	return maphash.Bytes(k.seed, b[:])
}

// Subject is a session's facts in the form that a decision needs. It is made
// once for a session, is immutable and fits the snapshots of the same key.
//
// What a decision reads comes first: the memo in one cache line, and the facts
// in the next; the padding makes the allocator align them.
type Subject struct {
	memo     memo
	mac      mac
	pair     pair
	authTime int64
	hint     atomic.Uint32 // row+1 of the token when it was last looked up; any value is safe
	level    int16
	factors  Factors
	posture  Score
	risk     Score
	browser  bool
	bad      bool // the user or device cannot stand in a list

	hash  uint64 // of pair
	until int64  // of facts.Expires
	facts Facts
	_     [16]byte
}

// Subject returns f in the form that decisions under k need.
func (k *TokenKey) Subject(f Facts) *Subject {
	if f.Browser {
		f.Token = "" // the rows of the browser device are never found by token
	}
	s := &Subject{facts: f, mac: k.mac(f.Token), authTime: nanos(f.AuthTime), until: nanos(f.Expires), level: int16(min(max(f.Level, 0), 1000)),
		factors: f.Factors, posture: f.Posture, risk: f.Risk, browser: f.Browser}
	var okU, okD bool
	s.pair.user, okU = makeID(f.UserID)
	if f.Browser {
		okD = true // the snapshot knows the name of the browser device
	} else {
		s.pair.device, okD = makeID(f.DeviceID)
	}
	s.bad = !okU || !okD
	s.hash = k.hash(s.pair)
	return s
}

// Facts returns the facts that s was made of.
func (s *Subject) Facts() Facts { return s.facts }

// TokenMac identifies the subject's token within this process; it is zero
// without a token.
func (s *Subject) TokenMac() [16]byte { return s.mac }

// Identity is Facts without a copy: the caller must not change it.
func (s *Subject) Identity() *Facts { return &s.facts }
