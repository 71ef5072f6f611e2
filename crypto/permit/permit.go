// Package permit derives the keys of permits: what an agent's first packet to a
// guarded port proves. A gateway has one root; the control center gets the keys
// of the present times only, and makes of them the tickets of each device. So
// neither has to tell the other of a device, and both have the same.
//
// Every step is HMAC-SM3 (GB/T 15852.2). The kernel checks a token by SipHash
// under Gate; user space checks a knock by HMAC-SM3 under Knock.
package permit

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/emmansun/gmsm/sm3"
)

// Root is a gateway's secret. It never leaves the gateway.
type Root [32]byte

// NewRoot draws one.
func NewRoot() (r Root) {
	_, _ = rand.Read(r[:]) // never fails
	return r
}

// Key makes the tickets of one time. It is secret.
type Key struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	Key   []byte    `json:"key"` // 32 bytes
}

// String hides the key.
func (k Key) String() string { return fmt.Sprintf("key of permits until %s", k.Until) }

// HomeLife is the time of the long-lived tickets, which agents come home with
// whose other tickets have all expired. It is longer than any other's.
const HomeLife = 90 * 24 * time.Hour

// Times returns the keys whose time is now or comes next. A time lasts life,
// and each key counts for a quarter of it longer, so that clocks may differ and
// a ticket in use is not lost at the change.
func (r Root) Times(now time.Time, life time.Duration) [2]Key {
	n := now.Unix() / int64(life/time.Second)
	return [2]Key{r.key(n, life), r.key(n+1, life)}
}

// Counting returns every key whose tickets count at now, or will next.
func (r Root) Counting(now time.Time, life time.Duration) []Key {
	n := now.Unix() / int64(life/time.Second)
	all := []Key{r.key(n, life), r.key(n+1, life)}
	if old := r.key(n-1, life); now.Before(old.Until) {
		all = append(all, old)
	}
	return all
}

func (r Root) key(n int64, life time.Duration) Key {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	binary.BigEndian.PutUint64(b[8:], uint64(life))
	from := time.Unix(n*int64(life/time.Second), 0).UTC()
	return Key{From: from, Until: from.Add(life + life/4), Key: sum(r[:], "yumen permit time", b[:])}
}

// Check reports whether k can make tickets.
func (k Key) Check() error {
	if len(k.Key) != 32 || !k.From.Before(k.Until) {
		return errors.New("check key of permits: not 32 bytes, or no time")
	}
	return nil
}

// Ticket is what one device holds for one gateway and one time. It is secret.
type Ticket struct {
	Alias [8]byte   `json:"alias"` // names it on the wire; its first bit is set, which no TLS record has
	Gate  [16]byte  `json:"gate"`  // SipHash key of tokens
	Knock [32]byte  `json:"knock"` // HMAC-SM3 key of knocks
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// Home reports whether t is a long-lived one.
func (t *Ticket) Home() bool { return t.Until.Sub(t.From) >= HomeLife }

// String hides the keys.
func (t Ticket) String() string { return fmt.Sprintf("ticket %x until %s", t.Alias, t.Until) }

// Ticket makes the ticket of a device.
func (k Key) Ticket(gatewayID, deviceID string) Ticket {
	seed := sum(k.Key, "yumen permit device", []byte{byte(len(gatewayID))}, []byte(gatewayID), []byte(deviceID))
	t := Ticket{From: k.From, Until: k.Until}
	copy(t.Alias[:], sum(seed, "alias"))
	t.Alias[0] |= 0x80
	copy(t.Gate[:], sum(seed, "gate"))
	copy(t.Knock[:], sum(seed, "knock"))
	return t
}

// Sum is the code of a knock's bytes.
func (t *Ticket) Sum(b []byte) []byte { return sum(t.Knock[:], "yumen knock 1", b) }

func sum(key []byte, label string, parts ...[]byte) []byte {
	h := hmac.New(func() hash.Hash { return sm3.New() }, key)
	h.Write([]byte(label))
	h.Write([]byte{0})
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
