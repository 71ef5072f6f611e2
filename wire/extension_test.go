package wire

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func manifest() Manifest {
	return Manifest{List: GrantsList, Version: 1<<64 - 1, NotAfter: "2026-01-02T03:04:05Z", Receiver: "GW000000001", Rows: 1,
		Pages: []ManifestPage{{SM3: PageHash([]byte("page")), Bytes: 4}}}
}

func TestManifestCheck(t *testing.T) {
	m := manifest()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Manifest){
		"other list":             func(m *Manifest) { m.List = "rows" },
		"version 0":              func(m *Manifest) { m.Version = 0 },
		"no receiver":            func(m *Manifest) { m.Receiver = "" },
		"fewer rows than none":   func(m *Manifest) { m.Rows = -1 },
		"too many rows":          func(m *Manifest) { m.Rows = MaxListRows + 1 },
		"too many pages":         func(m *Manifest) { m.Pages = make([]ManifestPage, MaxListPages+1) },
		"a time that is none":    func(m *Manifest) { m.NotAfter = "soon" },
		"locks among the grants": func(m *Manifest) { m.Locks = []LockRow{{Kind: "user", ID: "USR00000001"}} },
		"a short hash":           func(m *Manifest) { m.Pages[0].SM3 = "00" },
		"an empty page":          func(m *Manifest) { m.Pages[0].Bytes = 0 },
		"a page beyond 1 MiB":    func(m *Manifest) { m.Pages[0].Bytes = MaxMessage + 1 },
	} {
		m := manifest()
		change(&m)
		if m.Check() == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestExtensionsKeepLargeNumbers: versions are strings on the wire, since JSON
// numbers end at 2^53.
func TestExtensionsKeepLargeNumbers(t *testing.T) {
	m := manifest()
	raw, err := EncodeExtension(&m)
	if err != nil || !strings.Contains(string(raw), `"version":"18446744073709551615"`) {
		t.Fatalf("%s, %v", raw, err)
	}
	if got, err := DecodeExtension[Manifest](raw); err != nil || !reflect.DeepEqual(*got, m) {
		t.Errorf("got %+v, %v", got, err)
	}
	d := Delta{From: 1, To: 1<<63 + 1, Timestamp: "2026-01-02T03:04:05Z", Revoke: []Revocation{{SessionID: "s"}}}
	raw, err = EncodeExtension(&d)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeExtension[Delta](raw); err != nil || !reflect.DeepEqual(*got, d) {
		t.Errorf("%s: got %+v, %v", raw, got, err)
	}
}

func TestDecodeExtensionRefuses(t *testing.T) {
	for _, raw := range []string{``, `null`, `[]`, `7`, `{"issuer":"a","issuer":"b"}`, `{"issuer":"a"}x`, `{"issuer":1}`, `{"x":{"a":1,"a":2}}`, "{\"issuer\":\"\xff\"}"} {
		if q, err := DecodeExtension[SubjectQuery]([]byte(raw)); err == nil {
			t.Errorf("%q was taken as %+v", raw, q)
		}
	}
	if q, err := DecodeExtension[SubjectQuery]([]byte(`{"Issuer":"a","new":{"b":[1]}}`)); err != nil || q.Issuer != "" {
		t.Errorf("names in other case, unknown names: %+v, %v", q, err)
	}
	if _, err := DecodeExtension[SubjectQuery]([]byte(`{"x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`)); !errors.Is(err, ErrTooDeep) {
		t.Errorf("33 levels: %v", err)
	}
	if _, err := DecodeExtension[SubjectQuery]([]byte(`{"issuer":"` + strings.Repeat("a", MaxMessage) + `"}`)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("beyond 1 MiB: %v", err)
	}
}

func TestHelloHidesItsSecrets(t *testing.T) {
	h := TunnelHello{AgentID: "AGT00000001", AuthToken: "hunter2hunt", Key: []byte("0123456789abcdef")}
	if s := fmt.Sprintf("%v %+v %s", h, h, h); strings.Contains(s, "hunter2") || strings.Contains(s, "48 49") {
		t.Errorf("a log shows %s", s)
	}
}

func TestEnrolCode(t *testing.T) {
	c := EnrolCode{URL: "https://control.example:9443", Fingerprint: strings.Repeat("ab", 32), Secret: "AGT00000001.xyz", Kind: EnrolAgent}
	text, err := c.Text()
	if err != nil || !strings.HasPrefix(text, "yumen1.") {
		t.Fatal(text, err)
	}
	if got, err := ParseEnrolCode(" " + text[:20] + "\n " + text[20:] + " "); err != nil || got != c {
		t.Errorf("a careless paste: %+v, %v", got, err)
	}
	if strings.Contains(fmt.Sprint(c), "xyz") {
		t.Errorf("a log shows %v", c)
	}
	wrap := func(json string) string { return "yumen1." + base64.RawURLEncoding.EncodeToString([]byte(json)) }
	ok := `{"u":"https://c.example","f":"` + strings.Repeat("ab", 32) + `","s":"x","k":"app"}`
	if _, err := ParseEnrolCode(wrap(ok)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "yumen1.", text[:len(text)-3], strings.Replace(text, "yumen1.", "yumen2.", 1), text + "=", text + "A", wrap("null"), wrap("{}"),
		wrap(strings.Replace(ok, "https", "http", 1)), wrap(strings.Replace(ok, "c.example", "u:p@c.example", 1)), wrap(strings.Replace(ok, "abab", "ab", 1)),
		wrap(strings.Replace(ok, `"x"`, `""`, 1)), wrap(strings.Replace(ok, `"app"`, `"root"`, 1)), wrap(ok + "x"), wrap(strings.Replace(ok, `"s"`, `"s":"y","s"`, 1)),
	} {
		c, err := ParseEnrolCode(bad)
		if err == nil {
			t.Errorf("%q was taken as %v", bad, c)
		} else if len(bad) > 20 && strings.Contains(err.Error(), bad[7:]) {
			t.Errorf("the error %q shows the code", err)
		}
	}
}

func FuzzParseEnrolCode(f *testing.F) {
	f.Add("yumen1.e30")
	f.Add("yumen1.eyJ1IjoiaHR0cHM6Ly9hIn0")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseEnrolCode(text)
		if err != nil {
			return
		}
		again, err := c.Text()
		if err != nil {
			t.Fatal(err)
		}
		if d, err := ParseEnrolCode(again); err != nil || d != c {
			t.Fatalf("%q became %+v, %v", text, d, err)
		}
	})
}

// FuzzDecodeExtension holds for each extension message: no panic, and what was
// taken encodes to a text that decodes to itself.
func FuzzDecodeExtension(f *testing.F) {
	m := manifest()
	raw, _ := EncodeExtension(&m)
	f.Add(raw)
	f.Add([]byte(`{"from":"1","to":"2","grants":[` + goodGrant + `],"remove":[{"userId":"a"}],"locks":[{"kind":"user"}]}`))
	f.Add([]byte(`{"version":"1","list":"grants","applied":true,"key":"AAAA","secret":"s","csr":{"tls":"AA=="}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		extensionRoundTrip[Manifest](t, raw)
		extensionRoundTrip[Delta](t, raw)
		extensionRoundTrip[Ack](t, raw)
		extensionRoundTrip[TunnelHello](t, raw)
		extensionRoundTrip[EnrolRequest](t, raw)
	})
}

func extensionRoundTrip[M any](t *testing.T, raw []byte) {
	m, err := DecodeExtension[M](raw)
	if err != nil {
		return
	}
	plain, err := EncodeExtension(m)
	if err != nil || len(plain) > MaxMessage {
		return // a name of invalid UTF-8 cannot come out of Decode; a longer text can
	}
	again, err := DecodeExtension[M](plain)
	if err != nil {
		t.Fatalf("%s: %v", plain, err)
	}
	if twice, err := EncodeExtension(again); err != nil || string(twice) != string(plain) {
		t.Fatalf("%s became %s, %v", plain, twice, err)
	}
}
