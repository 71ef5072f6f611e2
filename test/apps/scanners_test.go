package apps

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

// sslscan sees TLS 1.2 and 1.3 with forward-secret suites alone.
func TestSSLScanFlagsNothing(t *testing.T) {
	long(t, "it wants sslscan")
	w := site(t)
	out, err := peer(t, 3*time.Minute, nil, program(t, "sslscan"), "--no-colour", "--sni-name=node."+testbed.Domain, testbed.Loopback(false, w.Port))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		`SSLv2\s+disabled`, `SSLv3\s+disabled`, `TLSv1\.0\s+disabled`, `TLSv1\.1\s+disabled`, `TLSv1\.2\s+enabled`, `TLSv1\.3\s+enabled`,
		`Session renegotiation not supported|Secure session renegotiation supported`, `not vulnerable to heartbleed`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("sslscan does not say %q:\n%s", want, out)
		}
	}
	suite := regexp.MustCompile(`(?m)^(?:Preferred|Accepted)\s+TLSv1\.[23]\s+(\d+) bits\s+(\S+)`)
	found := suite.FindAllStringSubmatch(out, -1)
	for _, s := range found {
		if !strings.HasPrefix(s[2], "TLS_") && !strings.HasPrefix(s[2], "ECDHE-") || strings.HasSuffix(s[2], "-SHA") {
			t.Errorf("suite %s of %s bits", s[2], s[1])
		}
	}
	if len(found) < 4 {
		t.Errorf("only %d suites: %s", len(found), out)
	}
}

// What testssl.sh says of a certificate of a laboratory, not of the protocol.
var ofTheCertificate = regexp.MustCompile(`^(cert_|DNS_CAArecord|OCSP_|cert|overall_grade|grade_|final_score|rating_|security_headers|HSTS|HPKP|banner_|scanTime|service|engine_problem|clientsimulation|scanProblem|cookie_|HTTP_)`)

// testssl.sh finds nothing in the protocols, suites and known attacks.
func TestTestSSLFlagsNothing(t *testing.T) {
	long(t, "it takes minutes")
	w := site(t)
	file := filepath.Join(t.TempDir(), "out.json")
	at := "node." + testbed.Domain
	out, err := peer(t, 15*time.Minute, nil, program(t, "testssl"), "--quiet", "--color", "0", "--warnings", "off", "--ip", "127.0.0.1", "--jsonfile", file,
		"--protocols", "--std", "--fs", "--server-defaults", "--vulnerable", "--sneaky", fmt.Sprintf("https://%s:%d", at, w.Port))
	b, readErr := os.ReadFile(file)
	if readErr != nil {
		t.Fatalf("%v, %v: %.2000s", err, readErr, out)
	}
	var all []struct{ ID, Severity, Finding string }
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		switch f.Severity {
		case "OK", "INFO":
		default:
			if !ofTheCertificate.MatchString(f.ID) {
				t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
			}
		}
	}
	if len(all) < 40 {
		t.Errorf("only %d findings of any kind: %.2000s", len(all), out)
	}
}

// slowhttptest's three attacks: slow heads, slow bodies, slow readers. The
// gateway closes them by its limits, and a good client has every request served.
func TestSlowHTTPTestIsClosedByLimits(t *testing.T) {
	long(t, "it takes a minute for each attack")
	w := site(t)
	u := w.NewUser("slow")
	w.Grant(u, "browser", time.Time{}, nodeID)
	for name, args := range map[string][]string{
		"header": {"-H", "-i", "5", "-x", "20"},
		"body":   {"-B", "-i", "5", "-s", "8192", "-x", "10"},
		"read":   {"-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"},
	} {
		t.Run(name, func(t *testing.T) {
			b := w.NewBrowser(t, false, false)
			if _, err := b.SignIn(within(t, time.Minute), w.URL("node", "/whoami"), u); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var served, failed int
			var slowest time.Duration
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
					}
					start := time.Now()
					p, err := b.Get(within(t, 20*time.Second), w.URL("node", "/whoami"))
					if err != nil || p.Status != http.StatusOK {
						failed++
						continue
					}
					served, slowest = served+1, max(slowest, time.Since(start))
				}
			})
			at := fmt.Sprintf("https://127.0.0.1:%d/", w.Port) // the program asks for names by DNS alone
			dir := t.TempDir()
			cmd := append(args, "-c", "800", "-r", "200", "-l", "120", "-p", "5", "-t", "GET", "-g", "-o", filepath.Join(dir, "slow"), "-u", at)
			if name == "body" {
				cmd = append(cmd, "-t", "POST")
			}
			out, err := peer(t, 3*time.Minute, nil, program(t, "slowhttptest"), cmd...)
			close(stop)
			wg.Wait()
			t.Logf("good client: %d served, %d failed, slowest %v", served, failed, slowest.Round(time.Millisecond))
			if failed > 0 || served < 20 {
				t.Errorf("the good client had %d of %d requests served", served, served+failed)
			}
			end := regexp.MustCompile(`(?i)exit status:\s*(.*)`).FindStringSubmatch(out)
			t.Logf("slowhttptest: %v %v", end, err)
			if !strings.Contains(out, "No open connections left") && !strings.Contains(strings.ToLower(out), "connections left") {
				t.Errorf("slowhttptest held connections to its end:\n%s", lastOf(out, 1500))
			}
		})
	}
}

func lastOf(s string, n int) string { return s[max(0, len(s)-n):] }
