package wire

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestPermitsAreChecked(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	good := PermitKeys{Knock: 1, Keys: []PermitKey{{now, now.Add(1), make([]byte, 32)}}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]PermitKeys{
		"no port": {Keys: good.Keys}, "no keys": {Knock: 1}, "many": {Knock: 1, Keys: make([]PermitKey, 5)},
		"short": {Knock: 1, Keys: []PermitKey{{now, now.Add(1), make([]byte, 31)}}}, "no time": {Knock: 1, Keys: []PermitKey{{now, now, make([]byte, 32)}}},
	} {
		if bad.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
	ticket := PermitTicket{Alias: []byte{0x80, 1, 2, 3, 4, 5, 6, 7}, Gate: make([]byte, 16), Knock: make([]byte, 32)}
	if err := (&Permit{Knock: 1, Tickets: []PermitTicket{ticket}}).Check(); err != nil {
		t.Error(err)
	}
	low := ticket
	low.Alias = make([]byte, 8)
	if (&Permit{Knock: 1, Tickets: []PermitTicket{low}}).Check() == nil {
		t.Error("an alias that reads as a TLS record was taken")
	}
	secret := PermitTicket{Gate: []byte("secret"), Knock: []byte("secret")}
	if s := fmt.Sprint(secret, &Permit{Tickets: []PermitTicket{secret}}, PermitKey{Key: []byte("secret")}); strings.Contains(s, "115 101") || strings.Contains(s, "secret") {
		t.Error(s)
	}
}
