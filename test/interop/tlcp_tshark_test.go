package interop

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// TestTsharkNamesWhatWeSend has a program of other make dissect captures of our
// own conversations, in every suite: it must find the version, the suite and
// each message in its place, and nothing malformed.
func TestTsharkNamesWhatWeSend(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("NOT TESTED: tshark is missing (run: make needs, or apt-get install tshark)")
	}
	s := newSite(t)
	for _, c := range []struct {
		suite uint16
		name  string
	}{
		{tlcp.ECC_SM4_GCM_SM3, "ECC_SM4_GCM_SM3"}, {tlcp.ECC_SM4_CBC_SM3, "ECC_SM4_CBC_SM3"},
		{tlcp.ECDHE_SM4_GCM_SM3, "ECDHE_SM4_GCM_SM3"}, {tlcp.ECDHE_SM4_CBC_SM3, "ECDHE_SM4_CBC_SM3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := &tlcp.Config{
				Certificates: []*tlcp.Pair{s.server.pair}, CipherSuites: []uint16{c.suite}, NextProtos: []string{"h2"},
				ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: s.roots,
			}
			client := &tlcp.Config{
				Certificates: []*tlcp.Pair{s.client.pair}, CipherSuites: []uint16{c.suite}, NextProtos: []string{"h2"},
				RootCAs: s.roots, ServerName: "gw.example.org",
			}
			file := filepath.Join(t.TempDir(), "tlcp.pcap")
			writePcap(t, file, conversation(t, server, client))
			run := func(args ...string) string {
				out, err := exec.Command(tshark, append([]string{"-n", "-r", file, "-d", "tcp.port==443,tls"}, args...)...).Output()
				if err != nil {
					t.Fatalf("tshark %v: %v\n%s", args, err, out)
				}
				return string(out)
			}
			text := run("-V", "-O", "tls")
			for _, want := range []string{
				"Version: GMTLS (0x0101)", "Cipher Suite: " + c.name, "Server Name: gw.example.org", "ALPN Next Protocol: h2",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is missing", want)
				}
			}
			for _, bad := range []string{"Malformed", "Unknown Record", "Ignored Unknown", "TCP Retransmission"} {
				if strings.Contains(text, bad) {
					t.Errorf("tshark says %q:\n%s", bad, text)
				}
			}
			var kinds []string
			for line := range strings.Lines(run("-T", "fields", "-e", "tls.handshake.type")) {
				for k := range strings.SplitSeq(strings.TrimSpace(line), ",") {
					if k != "" {
						kinds = append(kinds, k)
					}
				}
			}
			// hello, hello, certificates, keys, request, done; certificates, keys, proof.
			want := []string{"1", "2", "11", "12", "13", "14", "11", "16", "15"}
			if len(kinds) < len(want) || !slices.Equal(kinds[:len(want)], want) {
				t.Errorf("handshake messages %v, want %v", kinds, want)
			}
			if n := strings.Count(text, "id-at-commonName"); n < 4 {
				t.Errorf("%d names of certificates were dissected, want 4 at least", n)
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}
