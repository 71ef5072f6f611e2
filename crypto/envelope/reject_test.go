package envelope

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/internal/reason"
)

// forge makes an envelope from any header and body, signed properly by key: the
// tests' way past the checks of Seal.
func forge(t testing.TB, header, body string, key crypto.Signer) []byte {
	t.Helper()
	text := []byte("not canonical")
	if signed, err := SignedBytes([]byte(header), []byte(body)); err == nil {
		text = signed
	}
	sig, err := key.Sign(rand.Reader, text, sm2.DefaultSM2SignerOpts)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(`{"header":` + header + `,"body":` + body + `,"signature":"` + b64.EncodeToString(sig) + `"}`)
}

// headerOf returns the fields of a good status header of the gateway, changed
// by f.
func headerOf(t testing.TB, s *site, f func(map[string]any)) string {
	t.Helper()
	h := map[string]any{
		"version": Version, "msgType": "T10", "msgId": rand.Text(), "timestamp": time.Now().UTC().Format(timeLayout),
		"sender": "GW000000001", "receiver": "CTL00000001", "keyId": KeyID(s.gw.sign), "encAlg": EncNone, "sigAlg": SigSM2SM3,
	}
	if f != nil {
		f(h)
	}
	text, err := json.Marshal(h, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func set(name string, value any) func(map[string]any) {
	return func(h map[string]any) { h[name] = value }
}

func drop(name string) func(map[string]any) {
	return func(h map[string]any) { maps.DeleteFunc(h, func(k string, _ any) bool { return k == name }) }
}

func TestForgeMakesGoodEnvelopes(t *testing.T) {
	s := testSite(t)
	raw := forge(t, headerOf(t, s, nil), statusBody, s.gw.signer)
	if _, err := s.control.receiver(t, s.gw, nil).Open(raw); err != nil {
		t.Fatalf("the tests' own envelope: %v", errors.Unwrap(err))
	}
}

// TestGCR002_M20_HeaderAndSignature has headers that are signed well but are
// not what the receiver accepts, and signatures of others.
func TestGCR002_M20_HeaderAndSignature(t *testing.T) {
	s := testSite(t)
	for _, c := range []struct {
		name string
		f    func(map[string]any)
		key  crypto.Signer
		want reason.Reason
	}{
		{"signed by another's key", nil, s.app.signer, reason.MessageSignature},
		{"signed by the receiver's own key", nil, s.control.signer, reason.MessageSignature},
		{"names an unknown key", set("keyId", KeyID(s.app.sign)), nil, reason.MessageSignature},
		{"names another sender", set("sender", "GW000000002"), nil, reason.MessageSender},
		{"names the device as sender", set("sender", "DEV00000001"), nil, reason.MessageSender},
		{"for another receiver", set("receiver", "CTL00000002"), nil, reason.MessageReceiver},
		{"receiver in lower case", set("receiver", "ctl00000001"), nil, reason.MessageReceiver},
		{"another signature algorithm", set("sigAlg", "none"), nil, reason.MessageAlgorithm},
		{"another encryption algorithm", set("encAlg", "SM4-ECB"), nil, reason.MessageAlgorithm},
		{"says sealed, body is plain", set("encAlg", EncSM2SM4), nil, reason.MessageSealed},
		{"another message type", set("msgType", "T11"), nil, reason.MessageInvalid},
		{"unknown message type", set("msgType", "T23"), nil, reason.MessageInvalid},
		{"message type with a zero", set("msgType", "T01"), nil, reason.MessageInvalid},
		{"extension type in capitals", set("msgType", "X.ACK"), nil, reason.MessageInvalid},
		{"another version", set("version", "2"), nil, reason.MessageInvalid},
		{"no version", drop("version"), nil, reason.MessageInvalid},
		{"no message id", drop("msgId"), nil, reason.MessageInvalid},
		{"message id with a space", set("msgId", "a b"), nil, reason.MessageInvalid},
		{"message id of 65 characters", set("msgId", strings.Repeat("a", 65)), nil, reason.MessageInvalid},
		{"message id in Chinese", set("msgId", "编号"), nil, reason.MessageInvalid},
		{"message id with a line end", set("msgId", "a\n"), nil, reason.MessageInvalid},
		{"message id is a number", set("msgId", 1), nil, reason.MessageMalformed},
		{"no timestamp", drop("timestamp"), nil, reason.MessageInvalid},
		{"timestamp without zone", set("timestamp", time.Now().UTC().Format("2006-01-02T15:04:05")), nil, reason.MessageInvalid},
		{"timestamp in local time", set("timestamp", time.Now().UTC().Format("2006-01-02T15:04:05+00:00")), nil, reason.MessageInvalid},
		{"seq with a sign", set("seq", "-1"), nil, reason.MessageInvalid},
		{"seq of 2^64", set("seq", "18446744073709551616"), nil, reason.MessageInvalid},
		{"key id in capitals", set("keyId", strings.ToUpper(KeyID(s.gw.sign))), nil, reason.MessageInvalid},
		{"unknown field", set("priority", "1"), nil, reason.MessageMalformed},
		{"field in another case", set("MsgId", "a"), nil, reason.MessageMalformed},
		{"too many extensions", set("ext", manyExt()), nil, reason.MessageInvalid},
		{"extension with an empty name", set("ext", map[string]any{"": 1}), nil, reason.MessageInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := c.key
			if key == nil {
				key = s.gw.signer
			}
			raw := forge(t, headerOf(t, s, c.f), statusBody, key)
			_, err := s.control.receiver(t, s.gw, nil).Open(raw, "T10", "T4")
			wantRejected(t, err, c.want)
		})
	}
}

func manyExt() map[string]any {
	m := make(map[string]any)
	for i := range maxExt + 1 {
		m["x"+string(rune('A'+i))] = i
	}
	return m
}

// TestS34_MalformedMessages has texts that two parsers could read differently,
// or that are made to cost much.
func TestS34_MalformedMessages(t *testing.T) {
	s := testSite(t)
	good := string(forge(t, headerOf(t, s, nil), statusBody, s.gw.signer))
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}` }
	sign := func(body string) string { return string(forge(t, headerOf(t, s, nil), body, s.gw.signer)) }
	r := s.control.receiver(t, s.gw, nil)
	for _, c := range []struct {
		name, raw string
		want      reason.Reason
	}{
		{"empty", "", reason.MessageMalformed},
		{"white space", " \n", reason.MessageMalformed},
		{"not JSON", "hello", reason.MessageMalformed},
		{"an array", "[]", reason.MessageMalformed},
		{"null", "null", reason.MessageMalformed},
		{"cut short", good[:len(good)-1], reason.MessageMalformed},
		{"data after it", good + "{}", reason.MessageMalformed},
		{"second header first", `{"header":{},` + good[1:], reason.MessageMalformed},
		{"second body", good[:len(good)-1] + `,"body":{}}`, reason.MessageMalformed},
		{"Header beside header", good[:len(good)-1] + `,"Header":{}}`, reason.MessageMalformed},
		{"unknown member", good[:len(good)-1] + `,"x":1}`, reason.MessageMalformed},
		{"no signature", good[:strings.LastIndex(good, `,"signature"`)] + "}", reason.MessageMalformed},
		{"empty signature", good[:strings.LastIndex(good, `,"signature"`)] + `,"signature":""}`, reason.MessageMalformed},
		{"signature is null", good[:strings.LastIndex(good, `,"signature"`)] + `,"signature":null}`, reason.MessageMalformed},
		{"signature is no base64", good[:strings.LastIndex(good, `,"signature"`)] + `,"signature":"!"}`, reason.MessageSignature},
		{"duplicate name in the body", sign(`{"a":1,"a":2}`), reason.MessageMalformed},
		{"duplicate name by an escape", sign(`{"a":1,"\u0061":2}`), reason.MessageMalformed},
		{"invalid UTF-8", sign("{\"a\":\"\xff\"}"), reason.MessageMalformed},
		{"lone surrogate", sign(`{"a":"\ud800"}`), reason.MessageMalformed},
		{"too deep", sign(deep(MaxDepth)), reason.MessageMalformed},
		{"integer of 2^53", sign(`{"a":9007199254740992}`), reason.MessageMalformed},
		{"number out of range", sign(`{"a":1e999}`), reason.MessageMalformed},
		{"body is an array", sign(`[]`), reason.MessageMalformed},
		{"body is a string", sign(`"x"`), reason.MessageMalformed},
		{"body is null", sign(`null`), reason.MessageMalformed},
		{"too large", good + strings.Repeat(" ", DefaultMax), reason.MessageTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := r.Open([]byte(c.raw))
			wantRejected(t, err, c.want)
		})
	}
	for name, body := range map[string]string{
		"depth at the limit": deep(MaxDepth - 2), "2^53-1": `{"a":9007199254740991,"b":-9007199254740991,"c":1.5e300}`, "empty": `{}`,
	} {
		if _, err := r.Open([]byte(sign(body))); err != nil {
			t.Errorf("%s: %v", name, errors.Unwrap(err))
		}
	}
	// White space and escapes are free: what is signed is the meaning.
	spaced := strings.ReplaceAll(good, `,"`, " ,\n\t\"")
	m, err := r.Open([]byte(spaced))
	if err != nil {
		t.Fatalf("white space: %v", errors.Unwrap(err))
	}
	if want, _ := canonical([]byte(statusBody)); !bytes.Equal(m.Body, want) {
		t.Errorf("body: got %s, want the canonical %s", m.Body, want)
	}
}

// TestGCR002_M2_EveryFlippedBitIsRejected flips each bit of a plain and of a
// sealed envelope in turn.
func TestGCR002_M2_M20_EveryFlippedBitIsRejected(t *testing.T) {
	s := testSite(t)
	r := s.control.receiver(t, s.gw, nil)
	h := statusHeader
	h.Seq, h.Ext = "7", map[string]jsontext.Value{"listVersion": jsontext.Value(`"12"`), "n": jsontext.Value(`[1,2.5,null,true]`)}
	for _, c := range []struct {
		name string
		to   *smx509.Certificate
	}{{"plain", nil}, {"sealed", s.control.enc}} {
		raw := mustSeal(t, s.gw.sender(), h, statusBody, c.to)
		if _, err := r.Open(raw); err != nil {
			t.Fatalf("%s: %v", c.name, errors.Unwrap(err))
		}
		for i := range len(raw) * 8 {
			bad := bytes.Clone(raw)
			bad[i/8] ^= 1 << (i % 8)
			if m, err := r.Open(bad); err == nil {
				t.Fatalf("%s: bit %d of byte %d flipped: accepted as %+v\n%s", c.name, i%8, i/8, m, bad)
			}
		}
	}
}

// TestGCR002_M44_SealedIsTheReceiversWord: what must be sealed is said by the
// receiver, and a good signature does not open a bad seal.
func TestGCR002_M44_SealedIsTheReceiversWord(t *testing.T) {
	s := testSite(t)
	strictly := s.control.receiver(t, s.gw, func(c *Config) { c.RequireSealed = true })
	plainOnly := s.control.receiver(t, s.gw, func(c *Config) { c.Decrypter = nil })
	secretBody := `{"authToken":"tok00000001"}`
	plain := mustSeal(t, s.gw.sender(), statusHeader, secretBody, nil)
	sealed := mustSeal(t, s.gw.sender(), statusHeader, secretBody, s.control.enc)

	_, err := strictly.Open(plain)
	wantRejected(t, err, reason.MessageAlgorithm)
	_, err = plainOnly.Open(sealed)
	wantRejected(t, err, reason.MessageAlgorithm)
	if bytes.Contains(sealed, []byte("tok00000001")) {
		t.Error("the sealed envelope shows the token")
	}
	if m, err := strictly.Open(sealed); err != nil || string(m.Body) != secretBody {
		t.Errorf("sealed: %v", err)
	}
	// A plain body under a header that says sealed, and the reverse.
	_, err = strictly.Open(forge(t, headerOf(t, s, set("encAlg", EncSM2SM4)), secretBody, s.gw.signer))
	wantRejected(t, err, reason.MessageSealed)

	// A good signature over a seal that does not open.
	var e outer
	if err := json.Unmarshal(sealed, &e); err != nil {
		t.Fatal(err)
	}
	var body sealedBody
	if err := json.Unmarshal(e.Body, &body); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(*sealedBody){
		"key for another receiver": func(b *sealedBody) {
			raw := mustSeal(t, s.control.sender(), Header{MsgType: "T5", Receiver: s.gw.id}, `{}`, s.gw.enc)
			var e outer
			var other sealedBody
			if err := errors.Join(json.Unmarshal(raw, &e), json.Unmarshal(e.Body, &other)); err != nil {
				t.Fatal(err)
			}
			b.Key = other.Key
		},
		"ciphertext altered": func(b *sealedBody) { b.Ciphertext = flipB64(t, b.Ciphertext) },
		"nonce altered":      func(b *sealedBody) { b.Nonce = flipB64(t, b.Nonce) },
		"key altered":        func(b *sealedBody) { b.Key = flipB64(t, b.Key) },
		"nonce short":        func(b *sealedBody) { b.Nonce = "AAAA" },
		"ciphertext short":   func(b *sealedBody) { b.Ciphertext = "AAAA" },
		"no key":             func(b *sealedBody) { b.Key = "" },
		"nothing at all":     func(b *sealedBody) { *b = sealedBody{} },
		"not base64":         func(b *sealedBody) { b.Key = "!" },
		"unchanged, but a new header is other additional data": func(*sealedBody) {},
	} {
		t.Run(name, func(t *testing.T) {
			b := body
			f(&b)
			text, err := json.Marshal(&b)
			if err != nil {
				t.Fatal(err)
			}
			header := headerOf(t, s, set("encAlg", EncSM2SM4))
			_, err = strictly.Open(forge(t, header, string(text), s.gw.signer))
			wantRejected(t, err, reason.MessageSealed)
		})
	}
	// The header under which it was sealed still opens.
	if _, err := strictly.Open(forge(t, string(e.Header), string(e.Body), s.gw.signer)); err != nil {
		t.Errorf("signed again: %v", errors.Unwrap(err))
	}
}

func flipB64(t testing.TB, s string) string {
	t.Helper()
	b, err := b64.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	return b64.EncodeToString(b)
}

// TestSealedBodyIsStrictToo: what comes out of a seal is parsed as strictly as
// what is plain.
func TestSealedBodyIsStrictToo(t *testing.T) {
	s := testSite(t)
	r := s.control.receiver(t, s.gw, nil)
	for _, body := range []string{`{"a":1,"a":2}`, `[]`, `{"a":9007199254740992}`, "", "{}{}"} {
		header := headerOf(t, s, set("encAlg", EncSM2SM4))
		h, err := canonical([]byte(header))
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := sealBody(h, []byte(body), ecKey(t, s.control.enc))
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Open(forge(t, header, string(sealed), s.gw.signer))
		wantRejected(t, err, reason.MessageMalformed)
	}
}

// TestGCR002_Q30_SkewIsTheHeadersTime: the window is for the time of sending;
// an event in the body may be hours old.
func TestGCR002_Q30_SkewIsTheHeadersTime(t *testing.T) {
	s := testSite(t)
	now := time.Now().UTC()
	old := `{"timestamp":"2026-01-01T00:00:00Z"}`
	for _, c := range []struct {
		name string
		off  time.Duration // the receiver's clock before or after the sender's
		skew time.Duration
		ok   bool
	}{
		{"same clock", 0, 0, true},
		{"59 s late", 59 * time.Second, 0, true},
		{"59 s early", -59 * time.Second, 0, true},
		{"61 s late", 61 * time.Second, 0, false},
		{"61 s early", -61 * time.Second, 0, false},
		{"narrow window", 2 * time.Second, time.Second, false},
		{"an hour late, not checked", time.Hour, -1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := s.gw.sender()
			from.Now = at(now)
			raw := mustSeal(t, from, statusHeader, old, nil)
			r := s.control.receiver(t, s.gw, func(cfg *Config) { cfg.Now, cfg.Skew = at(now.Add(c.off)), c.skew })
			_, err := r.Open(raw)
			if c.ok && err != nil {
				t.Fatalf("rejected: %v", errors.Unwrap(err))
			}
			if !c.ok {
				wantRejected(t, err, reason.MessageSkew)
			}
		})
	}
}

// TestGCR002_Q24_RepliesAreSigned: Tables 5, 13 and 18 have no signature of
// their own, and are not taken without the envelope's.
func TestGCR002_Q24_RepliesAreSigned(t *testing.T) {
	s := testSite(t)
	r := s.gw.receiver(t, s.control, nil)
	for _, typ := range []string{"T5", "T13", "T18"} {
		raw := mustSeal(t, s.control.sender(), Header{MsgType: typ, Receiver: s.gw.id}, `{"code":200}`, nil)
		if _, err := r.Open(raw, typ); err != nil {
			t.Fatalf("%s: %v", typ, errors.Unwrap(err))
		}
		i := bytes.LastIndex(raw, []byte(`,"signature"`))
		_, err := r.Open(append(bytes.Clone(raw[:i]), '}'), typ)
		wantRejected(t, err, reason.MessageMalformed)
		other := bytes.Replace(raw, []byte(`"code":200`), []byte(`"code":400`), 1)
		_, err = r.Open(other, typ)
		wantRejected(t, err, reason.MessageSignature)
	}
}
