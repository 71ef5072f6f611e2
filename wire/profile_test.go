package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

func TestQ1_TokenNames(t *testing.T) {
	for name, take := range map[string]struct{ strict, lax bool }{
		`authenticationToken`:   {true, true},
		`authToken`:             {false, true},
		`authentication Token`:  {false, true},
		`authentication\nToken`: {false, true},
		`AuthToken`:             {false, false},
		`token`:                 {false, false},
	} {
		raw := []byte(strings.Replace(goodGrant, "authenticationToken", name, 1))
		for p, take := range map[Profile]bool{Strict: take.strict, Lax: take.lax} {
			g, err := Decode[Grant](raw, p)
			if (err == nil) != take || err == nil && g.AuthenticationToken != "0123456789A" {
				t.Errorf("%s, strict %v: %+v, %v, want taken %v", name, p.Strict, g, err, take)
			}
		}
	}
	both := strings.Replace(goodGrant, `"authenticationToken"`, `"authToken":"1","authenticationToken"`, 1)
	if _, err := Decode[Grant]([]byte(both), Lax); err == nil || err.Error() != "Table 7 authenticationToken: given twice" {
		t.Errorf("both names: %v", err)
	}
	g, err := Decode[Grant]([]byte(strings.Replace(goodGrant, "authenticationToken", "authToken", 1)), Lax)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := Encode(g); err != nil || string(b) != goodGrant {
		t.Errorf("sent %s, %v, want the standard's name", b, err)
	}
	if _, err := Decode[Renewal]([]byte(`{"authenticationToken":"0123456789A","updateTime":"2026-01-02T03:04:05Z"}`), Lax); err == nil {
		t.Error("Table 14 took Table 7's name")
	}
}

func TestQ4_IdentifierLengths(t *testing.T) {
	for n := range 15 {
		m := AccessRequest{AgentID: strings.Repeat("a", n), UserID: "USR00000001", DeviceID: "DEV00000001", AuthToken: "0123456789A",
			AppID: "APP00000001", AppName: "n", IP: "192.0.2.1", Port: 1}
		if got, want := m.Validate(Lax) == nil, n >= 1 && n <= 11; got != want {
			t.Errorf("lax, %d characters: %v", n, m.Validate(Lax))
		}
		if got, want := m.Validate(Strict) == nil, n == 11; got != want {
			t.Errorf("strict, %d characters: %v", n, m.Validate(Strict))
		}
		if _, err := Encode(m); (err == nil) != (n >= 1 && n <= 11) {
			t.Errorf("Encode, %d characters: %v (a foreign identifier is passed on as it came)", n, err)
		}
	}
	if got := NewID("GW", 1); got != "GW000000001" {
		t.Errorf("NewID = %s", got)
	}
	if got := NewID("USR", 99999999); got != "USR99999999" {
		t.Errorf("NewID = %s", got)
	}
	if err := (AccessRequest{AgentID: NewID("AGT", 100000000)}).Validate(Lax); err == nil || !strings.Contains(err.Error(), "agentId: 12 characters, at most 11") {
		t.Errorf("an id that overflowed: %v", err)
	}
}

func TestQ3_TokensAreUniformBase62(t *testing.T) {
	const n = 20000
	count := map[rune]int{}
	for range n {
		s, err := NewToken(nil)
		if err != nil || len(s) != 11 || (Renewal{s, "2026-01-02T03:04:05Z"}).Validate(Strict) != nil {
			t.Fatalf("token %q, %v", s, err)
		}
		for _, r := range s {
			count[r]++
		}
	}
	if len(count) != 62 {
		t.Errorf("%d different characters, want 62", len(count))
	}
	want := float64(n*11) / 62
	for r, c := range count {
		if math.Abs(float64(c)-want) > 6*math.Sqrt(want) { // six sigma
			t.Errorf("%c came %d times, want about %.0f", r, c, want)
		}
	}
	if s, err := NewToken(bytes.NewReader(bytes.Repeat([]byte{0xff}, 64))); err == nil {
		t.Errorf("token %q from a source of biased bytes alone", s)
	}
	if _, err := NewToken(iotest.ErrReader(errors.New("no entropy"))); err == nil || err.Error() != "make token: no entropy" {
		t.Errorf("error %v", err)
	}
}

func TestQ5_Addresses(t *testing.T) {
	v6 := Profile{Strict: true} // the strict profile with the flag for IPv6
	for ip, take := range map[string]struct{ strict, v6, lax, send bool }{
		"192.0.2.1":                  {true, true, true, true},
		"2001:db8::1":                {false, true, true, true},
		"::":                         {false, true, true, true},
		"2001:DB8::1":                {false, false, true, false},
		"2001:db8:0:0:0:0:0:1":       {false, false, true, false},
		"::ffff:192.0.2.1":           {false, true, true, true},
		"fe80::1%eth0":               {},
		"[2001:db8::1]":              {},
		"192.0.2.01":                 {},
		"0x7f.1":                     {},
		"3221225985":                 {},
		"１９２.0.2.1":                  {},
		"192.0.2.1\x00":              {},
		strings.Repeat("1.", 5000):   {},
		"2001:db8::1/64":             {},
		"1:2:3:4:5:6:7:8:9":          {},
		"0000:0000:0000:0000:0:0::1": {false, false, true, false},
	} {
		m := Resource{"APP00000001", "n", ip, 1}
		_, err := Encode(m)
		if s, v, l, e := m.Validate(Strict) == nil, m.Validate(v6) == nil, m.Validate(Lax) == nil, err == nil; s != take.strict || v != take.v6 || l != take.lax || e != take.send {
			t.Errorf("%.40q: strict %v, strict with IPv6 %v, lax %v, sent %v, want %v", ip, s, v, l, e, take)
		}
	}
}

func TestQ6_Coordinates(t *testing.T) {
	for degrees, want := range map[float64]Coordinate{39.9087: 399087000, -116.3912345: -1163912345, 180: MaxLongitude, 0.00000005: 1, 0: 0, math.Inf(1): 1e10} {
		if got := CoordinateOf(degrees); got != want {
			t.Errorf("CoordinateOf(%v) = %d, want %d", degrees, got, want)
		}
	}
	if CoordinateOf(math.NaN()) != 0 || Coordinate(-1163912345).Degrees() != -116.3912345 {
		t.Error("degrees are wrong")
	}
	base := string(sample(16).JSON())
	for raw, want := range map[string]Coordinate{`399087000`: 399087000, `3.99087e8`: 399087000, `39.9087`: 399087000, `"+39.9087"`: 399087000,
		`"-39.90871234"`: -399087123, `"+116.3912345"`: 1163912345, `"1163912345"`: 1163912345, `-0`: 0, `"0.0"`: 0, `-179.9999999`: -1799999999, `116.3912345`: 1163912345, `"-0.5"`: -5000000} {
		m, err := Decode[Authentication]([]byte(strings.Replace(base, `"longitude":399087000`, `"longitude":`+raw, 1)), Lax)
		if err != nil || m.Longitude != want {
			t.Errorf("%s: %+v, %v, want %d", raw, m, err, want)
			continue
		}
		if b, err := Encode(m); err != nil || !strings.Contains(string(b), fmt.Sprintf(`"longitude":%d,`, want)) {
			t.Errorf("%s: sent %s, %v, want a whole number", raw, b, err)
		}
	}
}

func TestQ7_GCR002_M64_Usage(t *testing.T) {
	for f, want := range map[float64]string{0: "000.00%", 5.25: "005.25%", 99.996: "100.00%", 100: "100.00%", 1e9: "100.00%", -3: "000.00%",
		math.NaN(): "000.00%", math.Inf(1): "100.00%", math.Inf(-1): "000.00%", 0.004: "000.00%"} {
		s := FormatUsage(f)
		if s != want || len(s) != 7 {
			t.Errorf("FormatUsage(%v) = %s, want %s", f, s, want)
		}
		m := GatewayStatus{"GW000000001", "DEV00000001", "2026-01-02T03:04:05Z", s, s, s}
		if _, err := Encode(m); err != nil || m.Validate(Strict) != nil {
			t.Errorf("%s: %v, %v", s, err, m.Validate(Strict))
		}
	}
	for s, want := range map[string]float64{"000.00%": 0, "5%": 5, "5.5%": 5.5, "42": 42, "100.00%": 100, "": -1, "%": -1, "100.01%": -1, "-1%": -1, "1e1%": -1, "NaN%": -1, "Inf": -1, "0x1p2": -1, "+5%": -1} {
		if got, err := ParseUsage(s); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("ParseUsage(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"5%", "5.00%", "101.00%", "099,00%", "1234567"} { // taken, never sent
		m := GatewayStatus{GatewayID: "GW000000001", DeviceID: "DEV00000001", Timestamp: "2026-01-02T03:04:05Z", CPUUsage: s}
		if _, err := Encode(m); err == nil || m.Validate(Strict) != nil {
			t.Errorf("%s: encoded %v, strict %v", s, err, m.Validate(Strict))
		}
	}
	if b, err := Encode(GatewayStatus{GatewayID: "GW000000001", DeviceID: "DEV00000001", Timestamp: "2026-01-02T03:04:05Z"}); err != nil || strings.Contains(string(b), "Usage") {
		t.Errorf("absent usage: %s, %v", b, err)
	}
}

func TestQ8_Times(t *testing.T) {
	at := time.Date(2026, 1, 2, 11, 4, 5, 999, time.FixedZone("+08", 8*3600))
	if got := FormatTime(at); got != "2026-01-02T03:04:05Z" {
		t.Errorf("FormatTime = %s, want UTC, cut to the second", got)
	}
	for s, want := range map[string]time.Time{
		"2026-01-02T03:04:05Z":           time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02T03:04:05.25Z":        time.Date(2026, 1, 2, 3, 4, 5, 250e6, time.UTC),
		"2026-01-02T03:04:05,25Z":        {},
		"2026-01-02T3:04:05.0000Z":       {},
		"2026-01-02T03:04:05+00:00":      {},
		"2026-01-02T03:04:05":            {},
		"":                               {},
		"2026-01-02T03:04:05.Z":          {},
		"2026-13-02T03:04:05Z":           {},
		"2026-01-02T24:00:00Z":           {},
		"2026-01-02T03:04:05.1234567890": {},
		"２026-01-02T03:04:05Z":           {},
	} {
		if got, err := ParseTime(s); (err == nil) == want.IsZero() || !got.Equal(want) {
			t.Errorf("ParseTime(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	if _, err := Encode(Renewal{"0123456789A", "2026-01-02T03:04:05.5Z"}); err == nil {
		t.Error("a fraction of a second was sent")
	}
}

func TestQ14_Q15_OpenRegistries(t *testing.T) {
	for code, take := range map[string]bool{KeyNone: true, KeySM2: true, KeySM4: true, KeySM2SM4: true, KeyRSA: true, KeyAES: true,
		"ML-KEM-768": true, "x": true, "": false, "12345678901": false, "SM2 SM4": false, "国密": false, "ＳＭ２": false, "SM2\u200b": false} {
		m := GrantList{GatewayID: "GW000000001", DeviceID: "DEV00000001", KeyType: code, Timestamp: "2026-01-02T03:04:05Z"}
		if got := m.Validate(Strict) == nil; got != take {
			t.Errorf("keyType %q: %v", code, m.Validate(Strict))
		}
	}
	for code, take := range map[string]bool{AuthOIDC: true, AuthSAML: true, AuthMTLS: true, AuthHMAC: true, AuthKey: true, "LDAP": true, "": true,
		"12345678901": false, "OI DC": false} {
		m := AppIdentity{"APP00000001", "n", Online, "2026-01-02T03:04:05Z", "192.0.2.1", 1, code, "", ""}
		if got := m.Validate(Strict) == nil; got != take {
			t.Errorf("authMethod %q: %v", code, m.Validate(Strict))
		}
	}
}

func TestQ18_AlertTypes(t *testing.T) {
	for code, take := range map[string]struct{ strict, lax, send bool }{
		"1.001": {true, true, true}, "2.018": {true, true, true}, "9": {true, true, true}, strings.Repeat("1", 20): {true, true, true},
		strings.Repeat("1", 21): {}, "": {}, "POLICY": {false, true, false}, "策略": {}, "1.\u202e1": {}, "１": {},
	} {
		m := GatewayAlert{"GW000000001", "DEV00000001", "2026-01-02T03:04:05Z", code, 2, "n"}
		_, err := Encode(m)
		if s, l, e := m.Validate(Strict) == nil, m.Validate(Lax) == nil, err == nil; s != take.strict || l != take.lax || e != take.send {
			t.Errorf("%q: strict %v, lax %v, sent %v, want %v", code, s, l, e, take)
		}
	}
}

func TestGCR002_M67_AlertLevels(t *testing.T) {
	for level := -1; level < 6; level++ {
		for _, m := range []Message{
			GatewayAlert{"GW000000001", "DEV00000001", "2026-01-02T03:04:05Z", "1.001", level, "n"},
			Notice{"GW000000001", "DEV00000001", "2026-01-02T03:04:05Z", "1.001", level, "n"},
			AgentAlert{"AGT00000001", "USR00000001", "DEV00000001", "2026-01-02T03:04:05Z", "1.001", level, "n"},
		} {
			if got, want := m.Validate(Lax) == nil, level >= 1 && level <= 3; got != want {
				t.Errorf("Table %d, level %d: %v", m.Table(), level, m.Validate(Lax))
			}
		}
	}
}

// TestQ21_GCR002_M37_DataHash checks the canonical bytes against a text that
// was put into RFC 8785 form by hand.
func TestQ21_GCR002_M37_DataHash(t *testing.T) {
	// printf '%s' '[{"a":1,"b":[1,1e+30,"é"]},null]' | sha256sum
	const want = "028fda60ecdd5ffde94fb66c5d66ea68dea244905697cbe23a905dcbe360f930"
	data := []jsontext.Value{jsontext.Value(`{ "b": [1.0, 1E30, "\u00e9"], "a" : 1 }`), jsontext.Value(`null`)}
	if got, err := DataHash(data); err != nil || got != want {
		t.Errorf("DataHash = %s, %v, want %s", got, err, want)
	}
	empty, err := DataHash(nil)
	if err != nil || empty != "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945" { // of []
		t.Errorf("DataHash(nil) = %s, %v", empty, err)
	}
	if _, err := DataHash([]jsontext.Value{jsontext.Value(`{"a":1,"a":2}`)}); err == nil {
		t.Error("a name that stands twice was hashed")
	}

	m := BusinessRequest{AppID: "APP00000001", KeyType: KeyNone, Timestamp: "2026-01-02T03:04:05Z", Data: data, DataHash: want, Remark: "取 一 次"}
	if err := m.Validate(Strict); err != nil {
		t.Error(err)
	}
	m.DataHash = strings.ToUpper(want)
	if _, err := Encode(m); err == nil || m.Validate(Lax) != nil {
		t.Errorf("upper case: sent %v, taken %v, want to take and not to send it", err == nil, m.Validate(Lax))
	}
	m.DataHash = hex.EncodeToString(make([]byte, 32))
	if err := m.Validate(Lax); err == nil || err.Error() != "Table 3 dataHash: not the SHA-256 of data in its RFC 8785 form" {
		t.Errorf("wrong hash: %v", err)
	}
	m.DataHash, m.Data = want, []jsontext.Value{data[1], data[0]} // M36: the order counts
	if m.Validate(Lax) == nil {
		t.Error("the hash held for another order")
	}
}

func TestQ22_FactorTypes(t *testing.T) {
	for n := -1; n < 102; n++ {
		m := Factor{n, "123456"}
		if got, want := m.Validate(Strict) == nil, n >= 1 && n <= 7; got != want {
			t.Errorf("type %d: %v", n, m.Validate(Strict))
		}
		if got, want := m.Validate(Profile{ExtendedFactors: true}) == nil, n >= 1 && n <= 99; got != want {
			t.Errorf("type %d in the extension: %v", n, m.Validate(Profile{ExtendedFactors: true}))
		}
	}
}

func TestFactorHidesItsContent(t *testing.T) {
	m := Authentication{UserAuthenticationList: []Factor{{1, "hunter2"}}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, m); strings.Contains(s, "hunter2") {
			t.Errorf("%s shows %s", verb, s)
		}
	}
}

func TestQ29_ResultHoldsNoChinese(t *testing.T) {
	for result, take := range map[string]bool{"302 NO_GRANT: access is not granted": true, "OK": true, "拒绝": false, "": false, " OK": false, "OK\n": false} {
		for _, m := range []Message{Reply{Failure, result}, AccessReply{Failure, result},
			AppIdentityReply{Code: Failure, Result: result}, AuthenticationReply{Code: Failure, Result: result}} {
			if got := m.Validate(Lax) == nil; got != take {
				t.Errorf("Table %d, %q: %v", m.Table(), result, m.Validate(Lax))
			}
		}
	}
}

func TestCleanTextIsAlwaysTaken(t *testing.T) {
	for _, tt := range []struct {
		text string
		most int
		want string
	}{
		{"设备 GW000000001：no answer\n\tfrom 10.0.0.1", 0, "设备 GW000000001：no answer  from 10.0.0.1"},
		{"a\x00b\u202Ec\U0001F600é", 11, "a?b?c??"},
		{" \n a \t", 11, "a"},
		{"\xff", 11, "?"},
		{"", 11, ""},
		{"1234567890 abc", 11, "1234567890"},
		{"玉门关玉门关玉门关玉门关", 11, "玉门关玉门关玉门关玉门"},
	} {
		got := CleanText(tt.text, tt.most)
		if why := upTo(tt.most, hans)(got, Strict); got != tt.want || why != "" {
			t.Errorf("CleanText(%q, %d) = %q (%s), want %q", tt.text, tt.most, got, why, tt.want)
		}
	}
}

func TestQ29_CleanResultIsAlwaysTaken(t *testing.T) {
	got := CleanResult(" YM-613 MESSAGE_INVALID: Table 1\nstate，2 ", 0)
	if want := "YM-613 MESSAGE_INVALID: Table 1 state?2"; got != want || (Reply{Failure, got}).Validate(Strict) != nil {
		t.Errorf("got %q, want %q", got, want)
	}
}
