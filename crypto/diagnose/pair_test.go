package diagnose

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// TestEveryFaultOfAPairIsNamed plants one fault at a time, and wants it named
// and blamed on the right certificate, and nothing else.
func TestEveryFaultOfAPairIsNamed(t *testing.T) {
	root := newAuthority(t, "root", nil)
	sub := newAuthority(t, "sub", root)
	stranger := newAuthority(t, "root", nil) // of the same name, with another key
	other := newAuthority(t, "other", nil)
	sign, enc := root.leaf(usageSign & smx509.KeyUsageDigitalSignature).Chain[0], root.leaf(usageEnc).Chain[0]
	both1 := sm2Key(t)
	type certs = []*smx509.Certificate
	roots := certs{root.cert}
	expired := func(c *smx509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	}
	for name, c := range map[string]struct {
		certs certs
		opts  PairOptions
		want  []string // all codes that must be there, faults and warnings
		says  string   // in a sentence
	}{
		"good":                     {certs{sign, enc}, PairOptions{Roots: roots, Names: []string{host, "127.0.0.1"}}, []string{"pair-good"}, ""},
		"good, in the other order": {certs{enc, sign}, PairOptions{Roots: roots}, []string{"pair-good"}, ""},
		"good, with intermediate": {certs{sub.leaf(smx509.KeyUsageDigitalSignature).Chain[0], sub.cert, sub.leaf(usageEnc).Chain[0]},
			PairOptions{Roots: roots}, []string{"pair-good"}, ""},
		"no root given": {certs{sign, enc}, PairOptions{}, []string{"chain-unchecked", "pair-good"}, ""},
		"sent in the wrong order": {certs{enc, sign}, PairOptions{Roots: roots, Ordered: true},
			[]string{"order"}, "before the signing certificate"},
		"root sent": {certs{sign, enc, root.cert}, PairOptions{Roots: roots, Ordered: true}, []string{"root-sent", "pair-good"}, ""},
		"nothing":   {nil, PairOptions{Roots: roots}, []string{"no-leaf"}, ""},
		"only root": {certs{root.cert}, PairOptions{Roots: roots}, []string{"no-leaf"}, ""},
		"only sign": {certs{sign}, PairOptions{Roots: roots}, []string{"one-leaf"}, "the encryption certificate is missing"},
		"only enc":  {certs{enc}, PairOptions{Roots: roots}, []string{"one-leaf"}, "the signing certificate is missing"},
		"twice":     {certs{sign, sign}, PairOptions{Roots: roots}, []string{"same-cert"}, "the encryption certificate is missing"},
		"three": {certs{sign, enc, root.leaf(usageEnc).Chain[0]}, PairOptions{Roots: roots},
			[]string{"many-leaves", "pair-good"}, ""},
		"same key": {certs{root.leafFor(&both1.PublicKey, smx509.KeyUsageDigitalSignature), root.leafFor(&both1.PublicKey, usageEnc)},
			PairOptions{Roots: roots}, []string{"same-key"}, "Both certificates have the same key"},
		"two for signing": {certs{sign, root.leaf(smx509.KeyUsageDigitalSignature).Chain[0]}, PairOptions{Roots: roots},
			[]string{"enc-usage"}, "encryption certificate lacks the key usages keyEncipherment"},
		"two for encryption": {certs{root.leaf(usageEnc).Chain[0], enc}, PairOptions{Roots: roots},
			[]string{"sign-usage"}, "signing certificate lacks the key usage digitalSignature (it has: keyEncipherment"},
		"no usage": {certs{sign, root.leaf(0).Chain[0]}, PairOptions{Roots: roots}, []string{"enc-usage"}, "it has: none"},
		"sign may encrypt": {certs{root.leaf(usageSign | usageEnc).Chain[0], enc}, PairOptions{Roots: roots},
			[]string{"sign-extra", "pair-good"}, ""},
		"enc may sign": {certs{sign, root.leaf(smx509.KeyUsageDigitalSignature | usageEnc).Chain[0]}, PairOptions{Roots: roots},
			[]string{"enc-extra", "pair-good"}, ""},
		"different subjects": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.Subject.CommonName = "else" }).Chain[0]},
			PairOptions{Roots: roots}, []string{"subjects-differ"}, "signing CN=leaf, encryption CN=else"},
		"different issuers": {certs{sign, other.leaf(usageEnc).Chain[0]}, PairOptions{Roots: certs{root.cert, other.cert}},
			[]string{"issuers-differ", "pair-good"}, ""},
		"different names": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.DNSNames = []string{"a.test"} }).Chain[0]},
			PairOptions{Roots: roots}, []string{"names-differ", "pair-good"}, ""},
		"sign expired": {certs{root.leaf(smx509.KeyUsageDigitalSignature, expired).Chain[0], enc}, PairOptions{Roots: roots},
			[]string{"expired"}, "The signing certificate expired"},
		"enc not yet": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.NotBefore = time.Now().Add(24 * time.Hour) }).Chain[0]},
			PairOptions{Roots: roots}, []string{"not-yet"}, "The encryption certificate is not valid before"},
		"enc ends soon": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.NotAfter = time.Now().Add(24 * time.Hour) }).Chain[0]},
			PairOptions{Roots: roots}, []string{"ends-soon", "pair-good"}, ""},
		"wrong curve": {certs{sign, root.leafFor(p256(t).Public(), usageEnc)}, PairOptions{Roots: roots},
			[]string{"curve"}, "The encryption certificate has a P-256 key"},
		"name missing": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.DNSNames = []string{"a.test"} }).Chain[0]},
			PairOptions{Roots: roots, Names: []string{host}}, []string{"name-missing"}, "The encryption certificate is not for " + host + " (it is for: a.test, 127.0.0.1)"},
		"no names": {certs{root.leaf(smx509.KeyUsageDigitalSignature, noNames).Chain[0], root.leaf(usageEnc, noNames).Chain[0]},
			PairOptions{Roots: roots}, []string{"no-names", "no-names", "pair-good"}, ""},
		"intermediate missing": {certs{sub.leaf(smx509.KeyUsageDigitalSignature).Chain[0], sub.leaf(usageEnc).Chain[0]},
			PairOptions{Roots: roots}, []string{"issuer-missing", "issuer-missing"}, "was issued by CN=sub, whose certificate is not there"},
		"another root of this name": {certs{sign, stranger.leaf(usageEnc).Chain[0]}, PairOptions{Roots: roots},
			[]string{"chain-broken"}, "The chain of the encryption certificate does not lead"},
		"for clients only": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.ExtKeyUsage = []smx509.ExtKeyUsage{smx509.ExtKeyUsageClientAuth} }).Chain[0]},
			PairOptions{Roots: roots}, []string{"extended-usage"}, "is not for a server (extended key usage: clientAuth)"},
		"for clients only, of a client": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.ExtKeyUsage = []smx509.ExtKeyUsage{smx509.ExtKeyUsageClientAuth} }).Chain[0]},
			PairOptions{Roots: roots, Client: true}, []string{"pair-good"}, ""},
		"marked as authority": {certs{sign, root.leaf(usageEnc, func(c *smx509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }).Chain[0]},
			PairOptions{Roots: roots}, []string{"is-ca"}, "The encryption certificate is marked as an authority's"},
	} {
		p := CheckPair(c.certs, c.opts)
		got := codes(p.Findings)
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
		var b bytes.Buffer
		if err := p.Findings.Write(&b); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), c.says) {
			t.Errorf("%s: got\n%s, want %q in it", name, &b, c.says)
		}
		if (p.Findings.Err("x") == nil) != slices.Contains(c.want, "pair-good") {
			t.Errorf("%s: error %v", name, p.Findings.Err("x"))
		}
	}
}

func noNames(c *smx509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }

func TestFilesWithKeysInAnyOrder(t *testing.T) {
	root := newAuthority(t, "root", nil)
	sign, enc := root.leaf(smx509.KeyUsageDigitalSignature), root.leaf(usageEnc)
	dir := t.TempDir()
	ca := writePEM(t, dir, "ca.pem", "CERTIFICATE", 0o644, root.cert.Raw)
	chain := writePEM(t, dir, "all.pem", "CERTIFICATE", 0o644, enc.Chain[0].Raw, root.cert.Raw, sign.Chain[0].Raw)
	der := filepath.Join(dir, "sign.der")
	if err := os.WriteFile(der, sign.Chain[0].Raw, 0o644); err != nil {
		t.Fatal(err)
	}
	encCert := writePEM(t, dir, "enc.pem", "CERTIFICATE", 0o644, enc.Chain[0].Raw)
	signKey := writePEM(t, dir, "sign.key", "PRIVATE KEY", 0o600, keyDER(t, sign.Key))
	encKey := writePEM(t, dir, "enc.key", "PRIVATE KEY", 0o600, keyDER(t, enc.Key))
	wrongKey := writePEM(t, dir, "wrong.key", "PRIVATE KEY", 0o644, keyDER(t, sm2Key(t)))
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	broken := writePEM(t, dir, "broken.pem", "CERTIFICATE", 0o644, []byte{0x30, 3, 1, 2, 3})
	locked := writePEM(t, dir, "locked.key", "ENCRYPTED PRIVATE KEY", 0o600, []byte{0x30, 0})
	for name, c := range map[string]struct {
		files []string
		want  []string
	}{
		"one file with chain": {[]string{chain}, []string{"pair-good"}},
		"with both keys":      {[]string{encKey, chain, signKey}, []string{"pair-good", "keys-good"}},
		"DER beside PEM":      {[]string{der, encCert}, []string{"pair-good"}},
		"one key":             {[]string{chain, signKey}, []string{"pair-good", "key-missing"}},
		"wrong key":           {[]string{chain, signKey, wrongKey}, []string{"key-mode", "pair-good", "key-other", "key-missing"}},
		"encrypted key":       {[]string{chain, locked}, []string{"key-encrypted", "pair-good"}},
		"no such file":        {[]string{chain, dir + "/none"}, []string{"file-unreadable", "pair-good"}},
		"folder":              {[]string{chain, dir}, []string{"file-unreadable", "pair-good"}},
		"no PEM":              {[]string{chain, empty}, []string{"file-empty", "pair-good"}},
		"broken certificate":  {[]string{chain, broken}, []string{"cert-unparsable", "pair-good"}},
	} {
		r := CheckFiles(c.files, FilesOptions{CA: ca, Names: []string{host}})
		if got := codes(r.Findings); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if r := CheckFiles([]string{chain}, FilesOptions{CA: empty}); !r.Findings.Has("ca-bad") || r.Err() == nil {
		t.Errorf("bad root file: got %v", codes(r.Findings))
	}
}

// TestCatalogueIsWhole: every sentence exists in both languages, and names the
// same arguments.
func TestCatalogueIsWhole(t *testing.T) {
	verb := regexp.MustCompile(`%(\[\d\])?[a-z]`)
	for code, e := range catalogue {
		if e.en == "" || e.zh == "" || (e.remedyEN == "") != (e.remedyZH == "") {
			t.Errorf("%s: a text is missing", code)
		}
		if e.level == Fault && e.remedyEN == "" {
			t.Errorf("%s: a fault without a remedy", code)
		}
		set := func(s string) []string { v := verb.FindAllString(s, -1); slices.Sort(v); return slices.Compact(v) }
		if !slices.Equal(set(e.en), set(e.zh)) {
			t.Errorf("%s: %v and %v", code, set(e.en), set(e.zh))
		}
	}
}

// FuzzFiles: whatever stands in a file, the check ends with a report.
func FuzzFiles(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(dir, "x")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Skip()
		}
		r := CheckFiles([]string{file}, FilesOptions{CA: file, Names: []string{host}, Passphrase: []byte("x")})
		var b bytes.Buffer
		if err := r.Write(&b); err != nil || r.Err() == nil && !r.Findings.Has("pair-good") {
			t.Errorf("got %v and %v", err, codes(r.Findings))
		}
		if strings.ContainsAny(b.String(), "\x1b\x00") {
			t.Error("control characters are printed")
		}
	})
}
