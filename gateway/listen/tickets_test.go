package listen

import (
	"crypto/tls"
	"encoding/binary"
	"testing"
	"time"
)

// A ticket is taken for a day after its full handshake, and not at all when it
// does not say when that was.
func TestTicketsAge(t *testing.T) {
	for name, c := range map[string]struct {
		age   time.Duration
		taken bool
	}{"fresh": {0, true}, "an hour": {time.Hour, true}, "almost a day": {24*time.Hour - time.Minute, true}, "a day": {24*time.Hour + time.Minute, false},
		"a week": {7 * 24 * time.Hour, false}, "of the future": {-time.Hour, false}, "without a time": {-1, false}} {
		s := &tls.SessionState{}
		if c.age != -1 {
			s.Extra = [][]byte{[]byte("another's"), binary.BigEndian.AppendUint64(append([]byte(nil), ticketMark...), uint64(time.Now().Add(-c.age).Unix()))}
		}
		if got := young(s, time.Now()); got != c.taken {
			t.Errorf("%s: taken %v, want %v", name, got, c.taken)
		}
	}
}
