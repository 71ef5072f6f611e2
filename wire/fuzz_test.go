package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// FuzzDecode holds for every table: no panic; what strict takes, lax takes as
// the same message; what was decoded is right, and encodes to a text that
// decodes to itself.
func FuzzDecode(f *testing.F) {
	for n := range 22 {
		f.Add(byte(n), sample(n+1).JSON())
		f.Add(byte(n), []byte(`{"code":400,"code":400,"x":[[{"y":null}]],"data":[{}],"appIdList":[""],"longitude":"1.5"}`))
	}
	f.Fuzz(func(t *testing.T, table byte, raw []byte) {
		n := int(table)%22 + 1
		strict, errStrict := codecs[n](raw, Strict)
		m, err := codecs[n](raw, Lax)
		if errStrict == nil && (err != nil || !reflect.DeepEqual(strict, m)) {
			t.Fatalf("strict took %+v, lax %+v, %v", strict, m, err)
		}
		if err != nil {
			if err.Error() == "" || m != nil {
				t.Fatalf("message %v, error %q", m, err)
			}
			return
		}
		if err := m.Validate(Lax); err != nil {
			t.Fatalf("decoded, but %v", err)
		}
		plain, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain) > MaxMessage { // a raw byte may have become longer
			return
		}
		again, err := codecs[n](plain, Lax)
		if err != nil {
			t.Fatalf("%s: %v", plain, err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(twice, plain) {
			t.Fatalf("%s became %s, %v", plain, twice, err)
		}
		if sent, err := Encode(m); err == nil && !bytes.Equal(sent, plain) {
			t.Fatalf("sent %s, want %s", sent, plain)
		}
	})
}

// FuzzDecodeGrantList holds that a tolerant list is Decode's own when no row is
// bad, and that each row is either kept and right or refused.
func FuzzDecodeGrantList(f *testing.F) {
	f.Add(grantList())
	f.Add(grantList(goodGrant, `{}`, `7`, goodGrant))
	f.Add(grantList(strings.Replace(goodGrant, "APP", "\\u0000", 1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, bad, err := DecodeGrantList(raw, Lax)
		whole, wholeErr := Decode[GrantList](raw, Lax)
		if err != nil || len(bad) > 0 {
			if wholeErr == nil {
				t.Fatalf("tolerant: %v, %d bad rows; Decode took it", err, len(bad))
			}
			if err != nil {
				return
			}
		} else if wholeErr != nil || !reflect.DeepEqual(list, whole) {
			t.Fatalf("tolerant took %+v, Decode %+v, %v", list, whole, wholeErr)
		}
		for i, g := range list.Data {
			if err := g.Validate(Lax); err != nil {
				t.Fatalf("row %d was kept: %v", i, err)
			}
			at := OriginalRow(bad, i)
			for _, b := range bad {
				if b.Row == at {
					t.Fatalf("row %d was kept and refused", at)
				}
			}
		}
	})
}

// FuzzClasses holds that no class lets through what imitates, hides or breaks
// text: controls, formats, surrogates, other scripts' letters (M103).
func FuzzClasses(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Add("玉门 gate（一）")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []class{word, ans, digits, hans, hexa} {
			if c.fault(s) != "" {
				continue
			}
			if trimmed := strings.TrimSpace(s); trimmed != s {
				t.Fatalf("class %d took space around %q", c, s)
			}
			if hans.fault(s) != "" {
				t.Fatalf("class %d took %q and hans did not", c, s)
			}
			for _, r := range s {
				if r < ' ' || r == 0x7f || r > 0x7f && c != hans || r >= 0xff01 && r <= 0xff5e && !strings.ContainsRune(punctuation, r) || r >= 0x2028 && r <= 0x206f || r >= 0x1f000 && r < 0x20000 {
					t.Fatalf("class %d took U+%04X", c, r)
				}
			}
		}
	})
}

// FuzzCoordinate holds that a text of degrees gives a coordinate in range or a
// fault, and never another number than the nearest.
func FuzzCoordinate(f *testing.F) {
	for _, s := range []string{`"+39.9087"`, `399087000`, `1e400`, `"--1"`, `""`, `-0.0`, `"179.99999995"`} {
		f.Add(s)
	}
	base := string(sample(16).JSON())
	f.Fuzz(func(t *testing.T, raw string) {
		m, err := Decode[Authentication]([]byte(strings.Replace(base, `"longitude":399087000`, `"longitude":`+raw, 1)), Lax)
		if err == nil && (m.Longitude < -MaxLongitude || m.Longitude > MaxLongitude) {
			t.Fatalf("%s gave %d", raw, m.Longitude)
		}
	})
}
