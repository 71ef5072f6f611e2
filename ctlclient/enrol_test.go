package ctlclient

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm3"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// enrolServer answers enrolments over real sockets. It sends its root in the
// handshake, as a server must that is known by a fingerprint.
type enrolServer struct {
	url, fingerprint string
	tlcpRoot         string // empty: it speaks TLS
	posted           []wire.EnrolRequest
	change           func(*wire.EnrolReply)
	refuse           reason.Reason
}

func newEnrolServer(t *testing.T, w *world, byTLCP bool) *enrolServer {
	t.Helper()
	s := &enrolServer{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		q := must1(wire.DecodeExtension[wire.EnrolRequest](readAll(t, r)))(t)
		s.posted = append(s.posted, *q)
		if s.refuse != reason.OK {
			body := must1(wire.Encode(&wire.Reply{Code: wire.Failure, Result: s.refuse.Result()}))(t)
			rw.WriteHeader(s.refuse.Status())
			rw.Write(body)
			return
		}
		id := certid.Identity{Gateway: gwID, Device: gwDev}
		reply := wire.EnrolReply{
			ID: gwID, DeviceID: gwDev, ControlID: ctlID,
			Certs: wire.EnrolPEMs{
				TLS:      string(must1(w.ca.IssueTLS(q.CSR.TLS, id, lab.Options{}))(t)),
				TLCPSign: string(must1(w.ca.IssueTLCPSign(q.CSR.TLCPSign, id, lab.Options{}))(t)),
				TLCPEnc:  string(must1(w.ca.IssueTLCPEnc(q.CSR.TLCPEnc, id, lab.Options{}))(t)),
				Sign:     string(must1(w.ca.IssueSign(q.CSR.Sign, id, lab.Options{}))(t)),
				Enc:      string(must1(w.ca.IssueEnc(q.CSR.Enc, id, lab.Options{}))(t)),
			},
			Roots:   wire.EnrolRoots{TLS: string(w.ca.RootPEM(keystore.TLSRoot)), TLCP: string(w.ca.RootPEM(keystore.TLCPRoot)), Message: string(w.ca.RootPEM(keystore.MessageRoot)), List: string(w.ca.RootPEM(keystore.ListRoot))},
			Control: wire.EnrolControl{URL: s.url, Sign: certPEM(t, w.control, keystore.Sign), Enc: certPEM(t, w.control, keystore.Enc)},
		}
		if s.change != nil {
			s.change(&reply)
		}
		rw.Write(must1(wire.EncodeExtension(reply))(t))
	}))
	t.Cleanup(srv.Close)
	cert := must1(w.control.TLSCertificate(keystore.TLS))(t)
	root, _ := pem.Decode(w.ca.RootPEM(keystore.TLSRoot))
	cert.Certificate = append(cert.Certificate, root.Bytes)
	sum := sha256.Sum256(root.Bytes)
	s.url, s.fingerprint = "https://"+srv.Listener.Addr().String(), hex.EncodeToString(sum[:])
	if !byTLCP {
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		srv.StartTLS()
		return s
	}
	gm := must1(keystore.ParseChain(w.ca.RootPEM(keystore.TLCPRoot)))(t)[0]
	digest := sm3.Sum(gm.Raw)
	s.tlcpRoot = hex.EncodeToString(digest[:])
	pair := must1(w.control.TLCPPair())(t)
	srv.Listener = tlcp.NewListener(srv.Listener, &tlcp.Config{Certificates: []*tlcp.Pair{pair.WithRoot(gm)}, NextProtos: []string{"http/1.1"}})
	srv.Start()
	return s
}

func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		return v
	}
}

func readAll(t *testing.T, r *http.Request) []byte {
	b := make([]byte, r.ContentLength)
	for n := 0; n < len(b); {
		k, err := r.Body.Read(b[n:])
		if n += k; err != nil && n < len(b) {
			t.Error(err)
			break
		}
	}
	return b
}

func certPEM(t *testing.T, s *keystore.Store, name string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf(t, s, name).Raw}))
}

func (s *enrolServer) code(t *testing.T) string {
	return must1(wire.EnrolCode{URL: s.url, Fingerprint: s.fingerprint, TLCPRoot: s.tlcpRoot, Secret: "s3cret", Kind: wire.EnrolGateway}.Text())(t)
}

func TestEnrolMakesAFolderThatWorks(t *testing.T) {
	t.Run("tls", func(t *testing.T) { enrolMakesAFolderThatWorks(t, false) })
	t.Run("tlcp", func(t *testing.T) { enrolMakesAFolderThatWorks(t, true) })
}

func enrolMakesAFolderThatWorks(t *testing.T, byTLCP bool) {
	w := newWorld(t)
	s := newEnrolServer(t, w, byTLCP)
	dir := filepath.Join(t.TempDir(), "keys")
	cfg := EnrolConfig{Code: " " + s.code(t)[:40] + "\n" + s.code(t)[40:], Dir: dir, Passphrase: pass, Iterations: 1000}
	got, err := Enrol(context.Background(), cfg)
	must(t, err)
	if want := (Enrolled{wire.EnrolGateway, gwID, gwDev, ctlID, s.url}); *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	keys, err := keystore.Open(dir, pass)
	must(t, err)
	if _, err := NewGateway(GatewayConfig{URL: s.url, GatewayID: gwID, DeviceID: gwDev, Keys: keys, Handler: &enforcer{}, StateDir: t.TempDir()}); err != nil {
		t.Errorf("a link with the new keys: %v", err)
	}
	if q := s.posted[0]; q.Secret != "s3cret" || q.DeviceType != "gateway" || q.SystemType == "" || strings.Contains(string(q.CSR.TLS), "PRIVATE") {
		t.Errorf("posted %+v", q)
	}
	if _, err := Enrol(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "another folder") || len(s.posted) != 1 {
		t.Errorf("a second enrolment in the folder: %v, %d posts", err, len(s.posted))
	}
}

func TestEnrolRefuses(t *testing.T) {
	t.Run("tls", func(t *testing.T) { enrolRefuses(t, false) })
	t.Run("tlcp", func(t *testing.T) { enrolRefuses(t, true) })
}

func enrolRefuses(t *testing.T, byTLCP bool) {
	w := newWorld(t)
	foreign, err := lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	tests := map[string]struct {
		set    func(*enrolServer)
		posts  int
		refuse bool
	}{
		"another server": {func(s *enrolServer) {
			if s.fingerprint = strings.Repeat("00", 32); byTLCP {
				s.tlcpRoot = s.fingerprint
			}
		}, 0, false},
		"a used code": {func(s *enrolServer) { s.refuse = reason.EnrolCode }, 1, true},
		"another TLS root": {func(s *enrolServer) {
			s.change = func(r *wire.EnrolReply) { r.Roots.TLS = string(foreign.RootPEM(keystore.TLSRoot)) }
		}, 1, false},
		"certificates of another root": {func(s *enrolServer) {
			s.change = func(r *wire.EnrolReply) { r.Roots.Message = string(foreign.RootPEM(keystore.MessageRoot)) }
		}, 1, false},
		"TLCP certificates of another root": {func(s *enrolServer) {
			s.change = func(r *wire.EnrolReply) { r.Roots.TLCP = string(foreign.RootPEM(keystore.TLCPRoot)) }
		}, 1, false},
		"TLCP certificates swapped": {func(s *enrolServer) {
			s.change = func(r *wire.EnrolReply) { r.Certs.TLCPSign, r.Certs.TLCPEnc = r.Certs.TLCPEnc, r.Certs.TLCPSign }
		}, 1, false},
		"another identity":       {func(s *enrolServer) { s.change = func(r *wire.EnrolReply) { r.ID = "GW000000002" } }, 1, false},
		"no device":              {func(s *enrolServer) { s.change = func(r *wire.EnrolReply) { r.DeviceID = "" } }, 1, false},
		"another control center": {func(s *enrolServer) { s.change = func(r *wire.EnrolReply) { r.ControlID = "CTL00000009" } }, 1, false},
		"certificates for the wrong keys": {func(s *enrolServer) {
			s.change = func(r *wire.EnrolReply) { r.Certs.Sign, r.Certs.Enc = r.Certs.Enc, r.Certs.Sign }
		}, 1, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newEnrolServer(t, w, byTLCP)
			tt.set(s)
			dir := filepath.Join(t.TempDir(), "keys")
			_, err := Enrol(context.Background(), EnrolConfig{Code: s.code(t), Dir: dir, Passphrase: pass, Iterations: 1000})
			var no *RefusedError
			if err == nil || errors.As(err, &no) != tt.refuse || len(s.posted) != tt.posts {
				t.Errorf("got %v after %d posts, want an error after %d", err, len(s.posted), tt.posts)
			}
			if _, err := os.Stat(filepath.Join(dir, "tls.crt")); err == nil {
				t.Error("the folder counts as enrolled")
			}
			// The same folder works with the next code.
			if again := newEnrolServer(t, w, byTLCP); true {
				if _, err := Enrol(context.Background(), EnrolConfig{Code: again.code(t), Dir: dir, Passphrase: pass, Iterations: 1000}); err != nil {
					t.Errorf("with a good code: %v", err)
				}
			}
		})
	}
	if _, err := Enrol(context.Background(), EnrolConfig{Code: "yumen1.x", Dir: t.TempDir(), Passphrase: pass}); err == nil {
		t.Error("half a code was taken")
	}
}

// The link over real sockets, once by each protocol: everything else runs in
// memory.
func TestGatewayOverRealSockets(t *testing.T) {
	t.Run("tlcp", func(t *testing.T) { gatewayOverRealSockets(t, profile.Mixed, "tlcp", "ECDHE_SM4_GCM_SM3") })
	t.Run("tls", func(t *testing.T) { gatewayOverRealSockets(t, profile.Intl, "tls1.3", "TLS_") })
}

func gatewayOverRealSockets(t *testing.T, p profile.Profile, protocol, suite string) {
	w := newWorld(t)
	c := w.center(w.gateway, gwID)
	c.byTLS = !p.TLCP()
	c.setLists(1, w.grants(1, grantRow(1)), 1, w.policies(1, nil))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() { defer close(done); c.serve(ln) }()
	defer func() { c.srv.Close(); <-done }()
	applied := make(chan struct{})
	e := &enforcer{fail: func(what string) error {
		if what == "grants 1" {
			close(applied)
		}
		return nil
	}}
	cfg := w.gatewayConfig(c, e)
	cfg.URL, cfg.Dial, cfg.Crypto = "https://"+ln.Addr().String(), nil, p
	g := newGateway(t, cfg)
	stop := run(t, g.Run)
	<-applied
	if s := g.Status(); s.Protocol != protocol || !strings.HasPrefix(s.Suite, suite) {
		t.Errorf("the link runs over %s %s, want %s %s", s.Protocol, s.Suite, protocol, suite)
	}
	// Another control center of the profile's protocol, and none of the other:
	// nothing falls back.
	other := cfg
	if other.Crypto = profile.Intl; c.byTLS {
		other.Crypto = profile.GM
	}
	other.StateDir, other.Handler = t.TempDir(), &enforcer{}
	og := newGateway(t, other)
	if err := og.identify(context.Background()); !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "crypto.profile") {
		t.Errorf("by the other protocol: %v", err)
	}
	og.Close()
	stop()
	t10 := c.of("T10")
	if len(t10) < 2 || string(t10[len(t10)-1].ext[wire.ExtState]) != `"stop"` {
		t.Errorf("%d statuses, the last should say stop", len(t10))
	}

	// A server of the same site that is no control center is not one.
	cfg.Keys, cfg.Handler, cfg.StateDir = w.gateway, e, t.TempDir()
	wrong := w.party("wrong", certid.Identity{App: "APP00000001"}, "127.0.0.1")
	cert := must1(wrong.TLSCertificate(keystore.TLS))(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("something was sent to it") }))
	if c.byTLS {
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		srv.StartTLS()
	} else {
		pair := must1(wrong.TLCPPair())(t)
		srv.Listener = tlcp.NewListener(srv.Listener, &tlcp.Config{
			Certificates: []*tlcp.Pair{pair}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: c.tlcp.ClientCAs, NextProtos: []string{"http/1.1"},
		})
		srv.Start()
	}
	defer srv.Close()
	cfg.URL = "https://" + srv.Listener.Addr().String()
	g = newGateway(t, cfg)
	defer g.Close()
	if err := g.identify(context.Background()); !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "want "+ctlID) {
		t.Errorf("identify: %v", err)
	}
}
