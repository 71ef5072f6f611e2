package ctlclient

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/wire"
)

// The long-lived permits of an enrolment lie sealed beside its keys; what was
// altered, or is of other keys, is not taken.
func TestLongLivedPermitsAreSealed(t *testing.T) {
	open := func() *keystore.Store {
		t.Helper()
		k, err := keystore.New(keystore.Config{Dir: filepath.Join(t.TempDir(), "keys"), Passphrase: []byte("a passphrase that is long"), Iterations: 10_000})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	keys := open()
	if p, err := LoadHome(keys); p != nil || err != nil {
		t.Fatalf("before anything was kept: %v, %v", p, err)
	}
	ticket := wire.PermitTicket{Alias: []byte{0x80, 1, 2, 3, 4, 5, 6, 7}, Gate: make([]byte, 16), Knock: bytes.Repeat([]byte("k"), 32), From: time.Unix(1, 0).UTC(), Until: time.Unix(9e8, 0).UTC()}
	want := wire.Home([]wire.GatewayRef{
		{ID: "GW1", Addresses: []string{"192.0.2.1:8443"}, Permit: &wire.Permit{Knock: 62201, Tickets: []wire.PermitTicket{ticket}, Home: []wire.PermitTicket{ticket}}},
		{ID: "GW2"}, {ID: "GW3", Permit: &wire.Permit{Knock: 1}},
	})
	if len(want.Gateways) != 1 || len(want.Gateways[0].Permit.Tickets) != 0 {
		t.Fatalf("%d gateways are kept, with short-lived tickets", len(want.Gateways))
	}
	if err := StoreHome(keys, want); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(keys.Dir(), homeName)
	raw, err := os.ReadFile(path)
	if err != nil || bytes.Contains(raw, []byte("GW1")) {
		t.Fatalf("not sealed: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", fi.Mode(), err)
	}
	got, err := LoadHome(keys)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := StoreHome(keys, want); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("written without need: %v", err)
	}
	for _, at := range []int{0, len(raw) / 2, len(raw) - 1} {
		bad := bytes.Clone(raw)
		bad[at] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := LoadHome(keys); err == nil {
			t.Errorf("byte %d altered: %v", at, p)
		}
	}
	other := open()
	if err := StoreHome(other, want); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other.Dir(), homeName), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := LoadHome(other); err == nil {
		t.Errorf("of other keys: %v", p)
	}
}
