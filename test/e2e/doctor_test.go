package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/diagnose"
	"github.com/yumen-zt/yumen/test/testbed"
)

// `yumen doctor tls` says of a running gateway what its crypto.profile is, and
// finds no fault with it.
func TestDoctorOfARunningGateway(t *testing.T) {
	t.Parallel()
	inWorlds(t, []where{overTLS, ownLinks, gmOnly}, func(t *testing.T, w *world) {
		args := []string{"doctor", "tls", testbed.Loopback(w.v6, w.Port), "--server-name", w.app(webID).Host(), "--ca", w.CAFile}
		if w.TLCP() {
			args = append(args, "--tlcp-ca", w.TLCPRootFile)
		}
		out, err := testbed.Verb(within(t, time.Minute), t, append(args, "-o", "json")...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var r diagnose.ServerReport
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		taken := func(all []diagnose.Offer) (out []string) {
			for _, o := range all {
				if o.Taken {
					out = append(out, o.Name)
				}
			}
			return out
		}
		if got := len(taken(r.TLS.Versions)); got != map[bool]int{true: 2}[w.Profile.TLS()] || w.Profile.TLS() && (r.TLS.ALPN != "h2" || !r.TLS.Resumption) {
			t.Errorf("TLS: %+v", r.TLS)
		}
		// ECC, for browsers: the ECDHE suites demand a certificate of the client.
		suites := taken(r.TLCP.Suites)
		if w.TLCP() != slices.ContainsFunc(suites, func(s string) bool { return strings.Contains(s, "ECC_SM4_GCM_SM3") }) ||
			w.TLCP() && (r.TLCP.ALPN != "h2" || !r.TLCP.Resumption || len(r.TLCP.Certificates) < 2) {
			t.Errorf("TLCP: %+v", r.TLCP)
		}
		want := map[string]bool{"tls-good": w.Profile.TLS(), "tlcp-good": w.TLCP(), "tlcp-trusted": w.TLCP(), "pair-good": w.TLCP()}
		for code, is := range want {
			if r.Findings.Has(code) != is {
				t.Errorf("finding %s: %v, want %v\n%s", code, !is, is, out)
			}
		}
		if r.Findings.Count(diagnose.Fault) > 0 {
			t.Errorf("faults: %s", out)
		}
		// For people, in both languages; a name that the gateway does not serve is
		// a fault, and the exit code says so.
		text, err := testbed.Verb(within(t, time.Minute), t, args...)
		if err != nil || !strings.Contains(text, "TLCP 可用") && w.TLCP() {
			t.Errorf("%v\n%s", err, text)
		}
		args[4] = "unknown." + testbed.Domain
		if text, err := testbed.Verb(within(t, time.Minute), t, args...); err == nil || !strings.Contains(text, args[4]) {
			t.Errorf("an unknown name: %v\n%s", err, text)
		}
		t.Logf("TLS %v, TLCP %v", taken(r.TLS.Versions), suites)
	})
}
