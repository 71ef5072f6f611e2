package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// The links of clauses 7 and 9 over TLCP: T4, lists, push, T10, T11,
// revocation; T16 to T22; enrolled again.
func TestLinksOverTLCP(t *testing.T) {
	overTLCP = true
	defer func() { overTLCP = false }()
	for name, f := range map[string]func(*testing.T){
		"T4": TestGCR002_M52_ListsOnlyAfterT4, "lists": TestGCR002_M54_GrantListIsSignedPagedSealedAndCached,
		"repeats": TestGCR002_M46_DuplicateMessagesHaveOneEffect, "push": TestS4_LockIsPushedWithinMilliseconds,
		"resume": TestLastEventIDResumesWithoutLossOrRepeat, "nobody": TestGCR002_M3_ChannelsOfNobody,
		"alerts": TestGCR002_M66_AlertIsOnDiskWhenItIsAcknowledged, "families": TestGCR002_M4_BothFamilies,
		"T16": TestGCR002_T16_PasswordGivesATokenThatTheGatewaysKnow, "report": TestQ25_IdentityReportKeepsAndRotatesTheToken,
		"T19": TestGCR002_T19_OnlyGrantedApplications, "T21": TestGCR002_T21_T22_AgentReports,
		"enrolled again": TestGCR002_Enrol_NewCertificatesReplaceTheOld,
	} {
		switch name { // these differ from the run over TLS in nothing but the channel
		case "repeats", "resume", "families", "report", "T19", "T21":
			if os.Getenv("YUMEN_LONG") == "" {
				continue
			}
		}
		t.Run(name, f)
	}
}

// anybody is a check of the peer that is not what a test is about.
func anybody(certid.Identity) error { return nil }

func (w *world) address(family int) string { return w.s.Addrs().Links[family].String() }

// get asks for a gateway's list over conn and returns the status.
func getOver(t *testing.T, conn net.Conn) int {
	t.Helper()
	tr := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://control" + gatewayBase + "/lists/grants")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func dialAs(t *testing.T, keys *keystore.Store, byTLCP bool, addr string) (net.Conn, error) {
	t.Helper()
	c, err := channel.New(channel.Config{Keys: keys, TLCP: byTLCP, Peer: anybody})
	if err != nil {
		t.Fatal(err)
	}
	return c.Dial(t.Context(), "tcp", addr)
}

func TestLinkStatusNamesProtocolAndSuite(t *testing.T) {
	w := newWorld(t)
	for _, byTLCP := range []bool{true, false} {
		overTLCP = byTLCP
		gw := w.enrol(NewDevice{Kind: "gateway"})
		overTLCP = false
		gw.identify()
		for _, g := range w.s.Status().Gateways {
			want, suite := "tls1.3", "TLS_"
			if byTLCP {
				want, suite = "tlcp", "ECDHE_SM4_GCM_SM3"
			}
			if g.ID == gw.id && (g.Protocol != want || !strings.HasPrefix(g.Suite, suite)) {
				t.Errorf("%s %s, want %s %s", g.Protocol, g.Suite, want, suite)
			}
		}
		records := w.audited("T4")
		if r := records[len(records)-1]; (r.Protocol == "tlcp") != byTLCP || r.Suite == "" {
			t.Errorf("audited as %s %s", r.Protocol, r.Suite)
		}
	}
	if h := w.s.Status().Handshakes; h.TLCP == 0 || h.TLS == 0 {
		t.Errorf("handshakes %+v", h)
	}
}

// Who is not whom the control center enrolled, or shows a pair of two parties,
// comes no further than the handshake, or gets 401.
func TestTLCPChannelsOfNobody(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	id := certid.Identity{Gateway: gw.id, Device: gw.device}
	ca, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	party := func(ca *lab.CA) *keystore.Store {
		return must[*keystore.Store](t)(ca.Party(filepath.Join(t.TempDir(), "keys"), []byte("p"), id, nil))
	}
	// Of the same authority and name, but not the certificate that was given.
	conn, err := dialAs(t, party(ca), true, w.address(0))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := getOver(t, conn); got != 401 {
		t.Errorf("another certificate of the same name: %d", got)
	}
	// Of another authority, which knows the control center's root.
	foreign, err := lab.New(lab.Config{Iterations: 1000})
	if err != nil {
		t.Fatal(err)
	}
	stranger := party(foreign)
	if err := stranger.PutRoot(keystore.TLCPRoot, ca.RootPEM(keystore.TLCPRoot)); err != nil {
		t.Fatal(err)
	}
	if conn, err := dialAs(t, stranger, true, w.address(0)); err == nil || !strings.Contains(err.Error(), "unknown_ca") {
		t.Errorf("a pair of another authority: %v, %v", conn, err)
	}
	// The other way round: the server's root is unknown to us.
	if _, err := dialAs(t, party(foreign), true, w.address(0)); err == nil || !strings.Contains(err.Error(), "signing certificate") {
		t.Errorf("a control center of another authority: %v", err)
	}
	// A pair of two parties.
	other := w.enrol(NewDevice{Kind: "gateway"})
	one, two := must[*tlcp.Pair](t)(gw.keys.TLCPPair()), must[*tlcp.Pair](t)(other.keys.TLCPPair())
	signKey, err1 := gw.keys.Signer(keystore.TLCPSign)
	encKey, err2 := other.keys.Signer(keystore.TLCPEnc)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	mixed := must[*tlcp.Pair](t)(tlcp.NewPair(tlcp.Certificate{Chain: []*smx509.Certificate{one.SignLeaf()}, Key: signKey}, tlcp.Certificate{Chain: []*smx509.Certificate{two.EncLeaf()}, Key: encKey}))
	roots := must[*smx509.CertPool](t)(gw.keys.Root(keystore.TLCPRoot))
	for _, suite := range []uint16{tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECC_SM4_GCM_SM3} {
		conn, err := tlcp.Dial(t.Context(), "tcp", w.address(0), &tlcp.Config{RootCAs: roots, Certificates: []*tlcp.Pair{mixed}, CipherSuites: []uint16{suite}})
		if err == nil || !strings.Contains(err.Error(), "bad_certificate") {
			t.Errorf("a pair of two parties by %s: %v, %v", tlcp.CipherSuiteName(suite), conn, err)
		}
	}
}

// crypto.profile: gm refuses TLS on the links and not on the pages of browsers,
// intl refuses TLCP; both say so.
func TestProfilesOfTheControlCenter(t *testing.T) {
	for _, p := range []profile.Profile{profile.GM, profile.Mixed, profile.Intl} {
		t.Run(p.String(), func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				c.Crypto.Profile = p
				c.IDP = &IDPConfig{Listen: []string{"127.0.0.1:0"}, Issuer: "https://login.test"}
			})
			keys := w.s.keys
			for _, byTLCP := range []bool{true, false} {
				want := ""
				switch {
				case byTLCP && p == profile.Intl:
					want = "speaks no TLCP"
				case !byTLCP && p == profile.GM:
					want = "refuses TLS"
				}
				conn, err := dialAs(t, keys, byTLCP, w.address(1))
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("TLCP %v: %v, want %q", byTLCP, err, want)
				}
				if err == nil {
					conn.Close()
				}
			}
			conn, err := tls.Dial("tcp", w.s.Addrs().IDP[0].String(), &tls.Config{RootCAs: w.roots, ServerName: "login.test", NextProtos: []string{"h2"}})
			if err != nil || conn.ConnectionState().NegotiatedProtocol != "h2" {
				t.Errorf("a browser at the sign-in by TLS: %v", err)
			} else {
				conn.Close()
			}
			_, code := w.code(NewDevice{Kind: "agent"})
			if (code.TLCPRoot == "") != (p == profile.Intl) {
				t.Errorf("the code's TLCP root is %q", code.TLCPRoot)
			}
		})
	}
}

// Who has no pair yet reaches enrolment, and nothing else, by one-way TLCP
// whose root is known by its fingerprint.
func TestEnrolmentByTLCP(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Crypto.Profile = profile.GM })
	_, code := w.code(NewDevice{Kind: "agent"})
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
		return tlcp.Dial(ctx, "tcp", addr, &tlcp.Config{PinnedRoot: func(c *smx509.Certificate) bool {
			sum := sm3.Sum(c.Raw)
			return hex.EncodeToString(sum[:]) == code.TLCPRoot
		}})
	}
	tr := &http.Transport{DialTLSContext: dial}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	keys, q := w.enrolRequest(code.Secret)
	status, r := w.postEnrol(hc, q)
	if status != 200 {
		t.Fatalf("enrol: %d", status)
	}
	if err := keys.PutChain(keystore.TLCPSign, []byte(r.Certs.TLCPSign)); err != nil {
		t.Error(err)
	}
	resp, err := hc.Get(w.url(0) + agentBase + "/resources")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("without a certificate: %d", resp.StatusCode)
	}
	wrong := &tlcp.Config{PinnedRoot: func(*smx509.Certificate) bool { return false }}
	if _, err := tlcp.Dial(t.Context(), "tcp", w.address(0), wrong); err == nil || !strings.Contains(err.Error(), "pinned root") {
		t.Errorf("another root: %v", err)
	}
}

// Connections that say nothing neither keep others out nor stay.
func TestSilentConnectionsBlockNobody(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	// A hello that never ends is cut off, below, by the deadline, whatever trickles in.
	c, err := net.Dial("tcp", w.address(0))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{22, 1, 1, 0, 100, 1, 0, 0}); err != nil {
		t.Fatal(err)
	}
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			c.Close()
		}
	}()
	for range maxHalfOpenEach + 20 {
		c, err := net.Dial("tcp", w.address(1))
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	start := time.Now()
	gw.identify() // comes from another source: 127.0.0.1
	if d := time.Since(start); d > helloTimeout/2 {
		t.Errorf("T4 beside silent connections took %v", d)
	}
	for w.s.Status().Handshakes.Refused < 20 {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("refused %d of 20 beyond the bound", w.s.Status().Handshakes.Refused)
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = c.SetReadDeadline(time.Now().Add(4 * helloTimeout))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF && !strings.Contains(err.Error(), "reset") {
		t.Errorf("half a hello: %v", err)
	}
}

func TestPlainHTTPIsToldToUseHTTPS(t *testing.T) {
	w := newWorld(t)
	resp, err := http.Get("http://" + w.address(0) + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 400 || !bytes.Contains(body, []byte("https")) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// Who fails at the door, and why, is counted by reason, audited and alerted, and
// a flood of it is told in part.
func TestGCR002_M39_FailedHandshakesAreToldByReason(t *testing.T) {
	var mu sync.Mutex
	var alerts []alert.Alert
	w := newWorld(t, func(c *Config) {
		c.Alerts = alert.Func(func(a alert.Alert) { mu.Lock(); defer mu.Unlock(); alerts = append(alerts, a) })
	})
	send := func(text string) {
		conn, err := net.Dial("tcp", w.address(0))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	}
	send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if conn, err := tls.Dial("tcp", w.address(0), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 was taken")
	}
	await := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, w.s.Status().Handshakes)
			}
		}
	}
	await("both are counted", func() bool {
		by := w.s.Status().Handshakes.Reasons
		return by[reason.PlainHTTP.String()] == 1 && by[reason.TLSVersion.String()] == 1
	})
	for _, r := range []reason.Reason{reason.PlainHTTP, reason.TLSVersion} {
		if !slices.ContainsFunc(w.audited("handshake"), func(a audit.Record) bool {
			return a.Code == r && !a.Allowed && strings.HasPrefix(a.Remote, "127.0.0.1:")
		}) {
			t.Errorf("no audit record of %s", r)
		}
	}
	for range 700 {
		send("x\r\n\r\n")
	}
	await("all are counted", func() bool { return w.s.Status().Handshakes.Failed >= 702 })
	if n := len(w.audited("handshake")); n > 650 {
		t.Errorf("%d records of a flood", n)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(alerts) == 0 || alerts[0].Code != alert.HandshakeFaults || len(alerts) > 3 {
		t.Errorf("alerts %+v", alerts)
	}
}
