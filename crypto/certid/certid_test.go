package certid

import (
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/smx509"
)

func uris(t testing.TB, text ...string) []*url.URL {
	t.Helper()
	var out []*url.URL
	for _, s := range text {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, u)
	}
	return out
}

func TestOfReadsWhatURIsWrites(t *testing.T) {
	want := Identity{Gateway: "GW000000001", Device: "DEV00000001", Agent: "AGT00000001", Control: "CTL00000001", App: "APP00000001", ListSigner: "CTL00000001"}
	if err := want.Validate(); err != nil {
		t.Fatal(err)
	}
	// As text and back, because that is how a certificate carries them.
	var text []string
	for _, u := range want.URIs() {
		text = append(text, u.String())
	}
	if i := slices.Index(text, "urn:yumen:device:DEV00000001"); i != 1 {
		t.Errorf("URIs: got %q", text)
	}
	got, err := Of(&x509.Certificate{URIs: uris(t, text...)})
	if err != nil || got != want {
		t.Errorf("Of: got %+v, %v; want %+v", got, err, want)
	}
	got, err = OfSM(&smx509.Certificate{URIs: uris(t, text...)})
	if err != nil || got != want {
		t.Errorf("OfSM: got %+v, %v; want %+v", got, err, want)
	}
}

func TestOfRefusesWhatCanBeReadInTwoWays(t *testing.T) {
	for _, c := range []struct {
		name string
		uris []string
		ok   bool
		want Identity
	}{
		{"one", []string{"urn:yumen:agent:AGT00000001"}, true, Identity{Agent: "AGT00000001"}},
		{"others beside it", []string{"https://example.org/", "spiffe://a/b", "urn:yumen:agent:AGT00000001", "urn:yumen:later:X"}, true, Identity{Agent: "AGT00000001"}},
		{"two of a kind", []string{"urn:yumen:device:DEV00000001", "urn:yumen:device:DEV00000002"}, false, Identity{}},
		{"the same twice", []string{"urn:yumen:device:DEV00000001", "urn:yumen:device:DEV00000001"}, false, Identity{}},
		{"12 characters", []string{"urn:yumen:device:DEV000000012"}, false, Identity{}},
		{"empty", []string{"urn:yumen:device:"}, false, Identity{}},
		{"no identifier", []string{"urn:yumen:device"}, false, Identity{}},
		{"colon", []string{"urn:yumen:device:A:B"}, false, Identity{}},
		{"escape", []string{"urn:yumen:device:DEV%30"}, false, Identity{}},
		{"query", []string{"urn:yumen:device:DEV1?x"}, false, Identity{}},
		{"fragment", []string{"urn:yumen:device:DEV1#x"}, false, Identity{}},
		{"kind in capitals", []string{"urn:yumen:Device:DEV00000001"}, false, Identity{}},
		{"path form", []string{"urn:/yumen:device:DEV00000001"}, false, Identity{}},
		{"none", nil, false, Identity{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Of(&x509.Certificate{URIs: uris(t, c.uris...)})
			if (err == nil) != c.ok || got != c.want {
				t.Errorf("got %+v, %v; want ok %v and %+v", got, err, c.ok, c.want)
			}
		})
	}
	if _, err := Of(&x509.Certificate{IsCA: true, URIs: uris(t, "urn:yumen:device:DEV00000001")}); err == nil {
		t.Error("an authority's certificate gave an identity")
	}
	for name, err := range map[string]error{
		"nil": second(Of(nil)), "nil SM": second(OfSM(nil)), "empty": second(Of(&x509.Certificate{})),
	} {
		if !errors.Is(err, ErrNone) {
			t.Errorf("%s: got %v, want ErrNone", name, err)
		}
	}
}

func second(_ Identity, err error) error { return err }

func TestSpeaks(t *testing.T) {
	id := Identity{Gateway: "GW000000001", Device: "DEV00000001"}
	for sender, want := range map[string]bool{"GW000000001": true, "DEV00000001": false, "": false, "GW000000002": false} {
		if got := id.Speaks(sender); got != want {
			t.Errorf("Speaks(%q): got %v, want %v", sender, got, want)
		}
	}
	if got := (Identity{}).Speaks(""); got {
		t.Error("nobody speaks for the empty sender")
	}
}

func TestSplitHosts(t *testing.T) {
	names, ips, err := SplitHosts([]string{"App.Example.org", "*.example.org", "127.0.0.1", "::1", "::ffff:10.0.0.1"})
	if err != nil || !slices.Equal(names, []string{"app.example.org", "*.example.org"}) {
		t.Errorf("names: got %q, %v", names, err)
	}
	if len(ips) != 3 || ips[0].String() != "127.0.0.1" || ips[1].String() != "::1" || len(ips[2]) != 4 {
		t.Errorf("addresses: got %v", ips)
	}
	for _, bad := range []string{"", ".", "a..b", "-a", "a-", "a b", "玉门.example", "*", "a.*.b", "https://x", "x:443", "fe80::1%eth0", strings.Repeat("a", 64), strings.Repeat("a.", 130) + "a"} {
		if _, _, err := SplitHosts([]string{bad}); err == nil {
			t.Errorf("host %q was taken", bad)
		}
	}
}

func FuzzFromURIs(f *testing.F) {
	f.Add("urn:yumen:device:DEV00000001")
	f.Add("urn:yumen:gateway:A%3aB?#")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := FromURIs([]*url.URL{u})
		if err != nil || id == (Identity{}) {
			return
		}
		back := id.URIs()
		if len(back) != 1 || back[0].String() != u.String() {
			t.Errorf("%q reads as %+v, which writes as %v", s, id, back)
		}
	})
}
