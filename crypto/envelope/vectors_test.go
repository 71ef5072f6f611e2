package envelope

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/reason"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew, with new keys")

const vectorFile = "testdata/vectors.json"

// vectors is the file of known answers. Its keys are for tests alone.
type vectors struct {
	Comment      string   `json:"comment"`
	Time         string   `json:"time"` // at which the envelopes are opened
	Root         string   `json:"root"` // PEM, SM2
	SenderCert   string   `json:"senderCert"`
	SenderKey    string   `json:"senderKey"` // private number, hexadecimal
	ReceiverCert string   `json:"receiverCert"`
	ReceiverKey  string   `json:"receiverKey"`
	Cases        []vector `json:"cases"`
}

type vector struct {
	Name        string `json:"name"`
	Envelope    string `json:"envelope"`
	SignedBytes string `json:"signedBytes"`
	Body        string `json:"body"`
	Digest      string `json:"digest"` // hexadecimal
}

var vectorTime = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// vectorCases is what the vectors are made of: names in an order that JCS
// changes, numbers and escapes that it rewrites, Chinese, a name beyond the
// basic plane (sorted by UTF-16, not by bytes).
func vectorCases() []struct {
	name   string
	h      Header
	body   string
	sealed bool
} {
	return []struct {
		name   string
		h      Header
		body   string
		sealed bool
	}{
		{"plain", Header{MsgType: "T10", MsgID: "vector-1", Receiver: "CTL00000001"}, statusBody, false},
		{"sealed", Header{MsgType: "T4", MsgID: "vector-2", Receiver: "CTL00000001", Seq: "18446744073709551615"}, `{"gatewayId":"GW000000001","authKey":"k"}`, true},
		{
			"canonical form",
			Header{MsgType: "T11", MsgID: "vector-3!~", Receiver: "CTL00000001", Ext: map[string]jsontext.Value{"z": jsontext.Value(`[1.0, -0, 1e3, 0.000001]`), "a": jsontext.Value(`{"b":null,"a":"\u0041\/"}`)}},
			"{ \"z\": 1.50, \"\\ud83d\\ude00\": 1, \"\\ufb33\": 2, \"exceptionAlertContent\": \"设备异常\\u0007\\n\\\"\", \"a\": [ ] }", false,
		},
	}
}

func makeVectors(t *testing.T) {
	ca, err := lab.New(lab.Config{Name: "Yumen test vectors", Iterations: 1, Now: at(vectorTime), LeafTTL: 10 * 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	control, err := newParty(ca, filepath.Join(t.TempDir(), "c"), certid.Identity{Control: "CTL00000001"})
	if err != nil {
		t.Fatal(err)
	}
	gw, err := newParty(ca, filepath.Join(t.TempDir(), "g"), certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"})
	if err != nil {
		t.Fatal(err)
	}
	number := func(s *keystore.Store, name string) string {
		key, err := s.Signer(name)
		if err != nil {
			t.Fatal(err)
		}
		e, err := key.(*sm2.PrivateKey).ECDH()
		if err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(e.Bytes())
	}
	v := vectors{
		Comment: "Keys for tests alone. Signatures and seals are randomized: a new run of -update changes all values.",
		Time:    vectorTime.Format(time.RFC3339), Root: string(ca.RootPEM(keystore.MessageRoot)),
		SenderCert: string(keystore.EncodeChain(gw.sign)), SenderKey: number(gw.store, keystore.Sign),
		ReceiverCert: string(keystore.EncodeChain(control.enc)), ReceiverKey: number(control.store, keystore.Enc),
	}
	from := gw.sender()
	from.Now = at(vectorTime)
	r := control.receiver(t, gw, func(c *Config) { c.Now = at(vectorTime) })
	for _, c := range vectorCases() {
		to := control.enc
		if !c.sealed {
			to = nil
		}
		raw := mustSeal(t, from, c.h, c.body, to)
		m, err := r.Open(raw)
		if err != nil {
			t.Fatal(errors.Unwrap(err))
		}
		signed, _ := signedParts(t, raw)
		v.Cases = append(v.Cases, vector{c.name, string(raw), string(signed), string(m.Body), hex.EncodeToString(m.Digest[:])})
	}
	text, err := json.Marshal(&v, jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(vectorFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// signedParts takes an envelope apart by SignedBytes, as another
// implementation would.
func signedParts(t testing.TB, raw []byte) (signed, sig []byte) {
	t.Helper()
	var e outer
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	signed, err := SignedBytes(e.Header, e.Body)
	if err != nil {
		t.Fatal(err)
	}
	if sig, err = b64.DecodeString(e.Signature); err != nil {
		t.Fatal(err)
	}
	return signed, sig
}

func readVectors(t testing.TB) *vectors {
	t.Helper()
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if len(v.Cases) != len(vectorCases()) {
		t.Fatalf("%d vectors, want %d", len(v.Cases), len(vectorCases()))
	}
	return &v
}

// receiver returns a receiver made of the vectors' fixed keys.
func (v *vectors) receiver(t testing.TB) *Receiver {
	t.Helper()
	certs, err := keystore.ParseChain([]byte(v.SenderCert))
	if err != nil {
		t.Fatal(err)
	}
	d, err := hex.DecodeString(v.ReceiverKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sm2.NewPrivateKey(d)
	if err != nil {
		t.Fatal(err)
	}
	now, err := time.Parse(time.RFC3339, v.Time)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReceiver(Config{ID: "CTL00000001", Decrypter: key, Signers: Pinned(certs...), Now: at(now)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGCR002_M20_KnownAnswers opens envelopes that were made once and for all:
// a change of any byte of the format breaks it.
func TestGCR002_M20_KnownAnswers(t *testing.T) {
	if *update {
		makeVectors(t)
	}
	v := readVectors(t)
	r := v.receiver(t)
	for i, c := range v.Cases {
		t.Run(c.Name, func(t *testing.T) {
			m, err := r.Open([]byte(c.Envelope))
			if err != nil {
				t.Fatal(errors.Unwrap(err))
			}
			if string(m.Body) != c.Body || hex.EncodeToString(m.Digest[:]) != c.Digest || m.Header.MsgID != vectorCases()[i].h.MsgID {
				t.Errorf("got body %s, digest %x, header %+v", m.Body, m.Digest, m.Header)
			}
			if signed, _ := signedParts(t, []byte(c.Envelope)); string(signed) != c.SignedBytes {
				t.Errorf("signed bytes: got %s, want %s", signed, c.SignedBytes)
			}
			_, err = r.Open([]byte(strings.Replace(c.Envelope, "vector-", "Vector-", 1)))
			wantRejected(t, err, reason.MessageSignature)
		})
	}
	// The canonical form, written out by hand from RFC 8785.
	want := signedPrefix + `{"body":{"a":[],"exceptionAlertContent":"设备异常\u0007\n\"","z":1.5,"😀":1,"` + "\ufb33" + `":2},"header":{"encAlg":"none",` +
		`"ext":{"a":{"a":"A/","b":null},"z":[1,0,1000,0.000001]},"keyId":"` + KeyID(mustCert(t, v.SenderCert)) + `","msgId":"vector-3!~","msgType":"T11",` +
		`"receiver":"CTL00000001","sender":"GW000000001","sigAlg":"SM2-SM3","timestamp":"2026-11-21T08:00:00.000Z","version":"1"}}`
	if got := v.Cases[2].SignedBytes; got != want {
		t.Errorf("canonical form:\n got %s\nwant %s", got, want)
	}
}

func mustCert(t testing.TB, pemText string) *smx509.Certificate {
	t.Helper()
	certs, err := keystore.ParseChain([]byte(pemText))
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// TestOpenSSLVerifiesSignatures has the certificates and signatures of the
// vectors, and of a fresh envelope, checked by a program that we did not write.
func TestOpenSSLVerifiesSignatures(t *testing.T) {
	v := readVectors(t)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root, leaf := file("root.crt", []byte(v.Root)), file("leaf.crt", []byte(v.SenderCert))
	if out, err := openssl(t, "verify", "-attime", "1795248000", "-x509_strict", "-CAfile", root, "-vfyopt", "distid:1234567812345678", leaf); err != nil {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
	out, err := openssl(t, "x509", "-in", leaf, "-noout", "-ext", "subjectAltName,keyUsage")
	if err != nil || !strings.Contains(out, "URI:urn:yumen:gateway:GW000000001, URI:urn:yumen:device:DEV00000001") || !strings.Contains(out, "Digital Signature\n") {
		t.Errorf("openssl x509: %v\n%s", err, out)
	}
	pub, err := openssl(t, "x509", "-in", leaf, "-noout", "-pubkey")
	if err != nil {
		t.Fatalf("openssl x509: %v\n%s", err, pub)
	}
	if block, _ := pem.Decode([]byte(pub)); block == nil {
		t.Fatalf("no public key in %s", pub)
	}
	key := file("pub.pem", []byte(pub))
	verify := func(signed, sig []byte, id string) (string, error) {
		return openssl(t, "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-digest", "sm3", "-pkeyopt", "distid:"+id,
			"-in", file("signed", signed), "-sigfile", file("sig", sig))
	}
	for _, c := range v.Cases {
		_, sig := signedParts(t, []byte(c.Envelope))
		if out, err := verify([]byte(c.SignedBytes), sig, "1234567812345678"); err != nil || !strings.Contains(out, "Signature Verified Successfully") {
			t.Errorf("%s: openssl pkeyutl: %v\n%s", c.Name, err, out)
		}
		if out, err := verify(bytes.Replace([]byte(c.SignedBytes), []byte("T"), []byte("t"), 1), sig, "1234567812345678"); err == nil {
			t.Errorf("%s: openssl verifies altered bytes: %s", c.Name, out)
		}
		if out, err := verify([]byte(c.SignedBytes), sig, "8765432187654321"); err == nil {
			t.Errorf("%s: openssl verifies under another identifier: %s", c.Name, out)
		}
	}
}

func openssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("this test needs the program openssl 3 (run: apt-get install openssl)")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

// FuzzOpen looks for texts that are accepted though nobody signed them: what is
// accepted must mean exactly what one of the vectors says.
func FuzzOpen(f *testing.F) {
	v := readVectors(f)
	r := v.receiver(f)
	signed := make(map[string]string) // signed bytes to body
	for _, c := range v.Cases {
		f.Add([]byte(c.Envelope))
		signed[c.SignedBytes] = c.Body
	}
	f.Add([]byte(`{"header":{},"body":{},"signature":"AA=="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := r.Open(raw)
		if err != nil {
			var rejected *RejectedError
			if !errors.As(err, &rejected) || rejected.Reason == reason.OK {
				t.Fatalf("error %v is no refusal", err)
			}
			return
		}
		got, _ := signedParts(t, raw)
		if body, ok := signed[string(got)]; !ok || body != string(m.Body) {
			t.Fatalf("accepted though nobody signed it: %s", raw)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s := testSite(b)
	for b.Loop() {
		mustSeal(b, s.gw.sender(), statusHeader, statusBody, s.control.enc)
	}
}

func BenchmarkOpen(b *testing.B) {
	s := testSite(b)
	r := s.control.receiver(b, s.gw, nil)
	raw := mustSeal(b, s.gw.sender(), statusHeader, statusBody, s.control.enc)
	for b.Loop() {
		if _, err := r.Open(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenPage opens a page of a list near the largest size.
func BenchmarkOpenPage(b *testing.B) {
	s := testSite(b)
	r := s.control.receiver(b, s.gw, nil)
	row := `{"userId":"USR00000001","deviceId":"DEV00000001","accessToken":"tok00000001","appIdList":["APP00000001","APP00000002"]},`
	body := `{"list":[` + strings.TrimSuffix(strings.Repeat(row, 5800), ",") + `]}`
	raw := mustSeal(b, s.gw.sender(), statusHeader, body, s.control.enc)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := r.Open(raw); err != nil {
			b.Fatal(err)
		}
	}
}
