package spa

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// KnockBytes is the size of a knock. Nothing is ever answered to one, so it
// amplifies nothing.
//
//	token (20) | version (1) = 1 | protocol (1) | port (2) | Unix ms (8) | HMAC-SM3 (32)
const KnockBytes = 64

// Skew is how far a knock's time may be from the gateway's.
const Skew = 60 * time.Second

const knockVersion = 1

// Wanted is what a knock asks to be opened.
type Wanted struct {
	Port     uint16
	Protocol uint8
}

// String returns it as "tcp/8443".
func (w Wanted) String() string {
	name := fmt.Sprint("protocol ", w.Protocol)
	switch w.Protocol {
	case TCP:
		name = "tcp"
	case UDP:
		name = "udp"
	}
	return fmt.Sprintf("%s/%d", name, w.Port)
}

// makeKnock returns a knock at the UDP port knockPort.
func makeKnock(t *permit.Ticket, counter uint32, knockPort uint16, w Wanted, now time.Time) []byte {
	b := AppendToken(make([]byte, 0, KnockBytes), t, counter, knockPort, UDP)
	b = append(b, knockVersion, w.Protocol)
	b = binary.BigEndian.AppendUint16(b, w.Port)
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMilli()))
	return append(b, t.Sum(b)...)
}

// readKnock checks everything of a knock but its counter.
func readKnock(t *permit.Ticket, b []byte, knockPort uint16, now time.Time) (Wanted, reason.Reason) {
	if len(b) != KnockBytes || b[20] != knockVersion {
		return Wanted{}, reason.GuardKnockRefused
	}
	if !genuine(t, b, knockPort, UDP) {
		return Wanted{}, reason.GuardTokenForged
	}
	if subtle.ConstantTimeCompare(t.Sum(b[:32]), b[32:]) != 1 {
		return Wanted{}, reason.GuardKnockRefused
	}
	at := time.UnixMilli(int64(binary.BigEndian.Uint64(b[24:])))
	if d := now.Sub(at); d > Skew || d < -Skew {
		return Wanted{}, reason.GuardKnockRefused
	}
	return Wanted{Port: binary.BigEndian.Uint16(b[22:]), Protocol: b[21]}, reason.OK
}
