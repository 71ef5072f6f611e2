package proxy

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
)

// h2spec is the conformance suite of RFC 7540 and 7541. It is run when
// YUMEN_H2SPEC names its program.
func TestH2Spec(t *testing.T) {
	program := os.Getenv("YUMEN_H2SPEC")
	if program == "" {
		t.Skip("YUMEN_H2SPEC does not name h2spec")
	}
	for engine, most := range map[string]int{HTTP2Own: 0, HTTP2Reference: 7} {
		t.Run(engine, func(t *testing.T) {
			f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("ok")) }), with(func(c *fixtureConfig) {
				c.cfg.HTTP2Engine = engine
				c.app.Hosts = append(c.app.Hosts, "localhost")
			}))
			_, port, _ := net.SplitHostPort(f.addr)
			out, _ := exec.Command(program, "-t", "-k", "-h", "localhost", "-p", port, "-o", "3", "-S").CombinedOutput()
			m := regexp.MustCompile(`(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed`).FindSubmatch(out)
			if m == nil {
				t.Fatalf("no summary: %s", out)
			}
			t.Logf("%s", m[0])
			if failed, _ := strconv.Atoi(string(m[4])); failed > most {
				t.Errorf("%s", out)
			}
		})
	}
}
