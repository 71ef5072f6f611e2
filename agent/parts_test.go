package agent

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// labGateway is a small gateway over real TLS: it opens the hello, answers each
// access request by decide, and echoes.
type labGateway struct {
	t    testing.TB
	id   string
	dir  string // of its keys
	ref  wire.GatewayRef
	open *envelope.Receiver
	l    net.Listener
	wg   sync.WaitGroup

	mu       sync.Mutex
	decide   func(*wire.AccessRequest) reason.Reason // guarded by mu
	sessions []*mux.Session                          // guarded by mu
	hellos   []wire.TunnelHello                      // guarded by mu; without keys
	renewals []string                                // guarded by mu; tokens
	flow     *mux.Flow                               // guarded by mu; the newest
}

// newLabGateway listens for the default carrier, or for the one named.
func newLabGateway(t testing.TB, ca *lab.CA, id string, carriers ...string) *labGateway {
	t.Helper()
	dir := t.TempDir()
	keys, err := ca.Party(filepath.Join(dir, "keys"), []byte("pass"), certid.Identity{Gateway: id, Device: "DEV" + id[3:]}, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cert, err := keys.TLSCertificate(keystore.TLS)
	must(err)
	roots, err := keys.TLSRoots()
	must(err)
	dec, err := keys.Decrypter(keystore.Enc)
	must(err)
	messages, err := keys.Root(keystore.MessageRoot)
	must(err)
	enc, err := keys.Chain(keystore.Enc)
	must(err)
	sign, err := keys.Chain(keystore.Sign)
	must(err)
	g := &labGateway{t: t, id: id, dir: dir, decide: func(*wire.AccessRequest) reason.Reason { return reason.OK }}
	g.open, err = envelope.NewReceiver(envelope.Config{ID: id, Decrypter: dec, RequireSealed: true, Resolve: envelope.PartySigner(messages, nil)})
	must(err)
	if slices.Contains(carriers, carrier.NameTLS) {
		g.l, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{carrier.ALPN},
		})
	} else {
		var pair *tlcp.Pair
		pair, err = keys.TLCPPair()
		must(err)
		var roots *smx509.CertPool
		roots, err = keys.Root(keystore.TLCPRoot)
		must(err)
		g.l, err = tlcp.Listen("tcp", "127.0.0.1:0", &tlcp.Config{
			Certificates: []*tlcp.Pair{pair}, ClientCAs: roots, ClientAuth: tlcp.RequireAndVerifyClientCert, NextProtos: []string{carrier.ALPN},
		})
	}
	must(err)
	g.ref = wire.GatewayRef{ID: id, Addresses: []string{g.l.Addr().String()}, Sign: sign[0].Raw, Enc: enc[0].Raw}
	g.wg.Go(func() {
		for {
			c, err := g.l.Accept()
			if err != nil {
				return
			}
			h := &labTunnel{g: g}
			h.mux = mux.Server(c, mux.Config{Handler: h})
			g.mu.Lock()
			g.sessions = append(g.sessions, h.mux)
			g.mu.Unlock()
			g.wg.Go(func() { _ = h.mux.Run(context.Background()) })
		}
	})
	t.Cleanup(func() {
		g.l.Close()
		g.mu.Lock()
		for _, s := range g.sessions {
			s.Close(reason.Shutdown)
		}
		g.mu.Unlock()
		g.wg.Wait()
	})
	return g
}

type labTunnel struct {
	g    *labGateway
	mux  *mux.Session
	seal *carrier.Sealer
}

func (h *labTunnel) Message(p []byte) reason.Reason {
	if p[0] == carrier.Hello {
		m, err := h.g.open.Open(p[1:], wire.TypeHello)
		if err != nil {
			h.g.t.Errorf("hello: %v", err)
			return reason.MessageSignature
		}
		hello, err := wire.DecodeExtension[wire.TunnelHello](m.Body)
		if err != nil || m.Header.Sender != hello.AgentID {
			h.g.t.Errorf("hello of %s: %+v, %v", m.Header.Sender, hello, err)
		}
		h.seal, err = carrier.NewSealer(hello.Key, true)
		if err != nil {
			h.g.t.Error(err)
			return reason.MessageSealed
		}
		hello.Key = nil
		h.g.mu.Lock()
		h.g.hellos = append(h.g.hellos, *hello)
		h.g.mu.Unlock()
		h.mux.Establish()
		return h.send(carrier.Reply, &wire.Reply{Code: wire.Success, Result: reason.OK.Result()})
	}
	kind, body, err := h.seal.Open(p)
	if err != nil || kind != carrier.Renewal {
		return reason.MessageSealed
	}
	var m wire.Renewal
	if err := json.Unmarshal(body, &m); err != nil {
		return reason.MessageMalformed
	}
	h.g.mu.Lock()
	h.g.renewals = append(h.g.renewals, m.AuthToken)
	h.g.mu.Unlock()
	return h.send(carrier.Reply, &wire.Reply{Code: wire.Success, Result: reason.OK.Result()})
}

func (h *labTunnel) send(kind byte, m any) reason.Reason {
	body, err := json.Marshal(m)
	if err != nil {
		return reason.InternalError
	}
	if err := h.seal.Seal(kind, body, h.mux.Send); err != nil {
		return reason.InternalError
	}
	return reason.OK
}

func (h *labTunnel) Open(f *mux.Flow, p []byte) {
	_, body, err := h.seal.Open(p)
	var m wire.AccessRequest
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		h.g.t.Errorf("access request: %v", err)
	}
	h.g.mu.Lock()
	h.g.flow = f
	r := h.g.decide(&m)
	h.g.mu.Unlock()
	reply := wire.AccessReply{Code: wire.Success, Result: r.Result()}
	if r != reason.OK {
		reply.Code = wire.Failure
	}
	b, _ := json.Marshal(&reply)
	h.g.wg.Go(func() {
		_ = h.seal.Seal(carrier.AccessReply, b, func(sealed []byte) error {
			if r != reason.OK {
				return f.Refuse(r, sealed)
			}
			return f.Accept(sealed)
		})
		if r == reason.OK {
			defer f.Close()
			_, _ = io.Copy(f, f)
			_ = f.CloseWrite()
		}
	})
}

// labAgent makes an agent with enrolled keys and the real tunnel.
func labAgent(t testing.TB, ca *lab.CA, change func(*Config)) *rig {
	t.Helper()
	dir := t.TempDir()
	pass := filepath.Join(dir, "passphrase")
	if err := os.WriteFile(pass, []byte("pass\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Party(filepath.Join(dir, "keys"), []byte("pass"), certid.Identity{Agent: testID.AgentID, Device: testID.DeviceID}, nil); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) {
		c.Dir, c.Identity, c.Sealer = dir, Identity{}, nil
		if change != nil {
			change(c)
		}
	})
	// newRig gave it a fake dialer: put the real one in its place.
	store, err := keystore.Open(filepath.Join(dir, "keys"), []byte("pass"))
	if err != nil {
		t.Fatal(err)
	}
	if r.a.dialer, err = newGatewayDialer(store, r.a.id, &r.a.cfg, &permits{}); err != nil {
		t.Fatal(err)
	}
	return r
}

func newLab(t testing.TB) *lab.CA {
	t.Helper()
	ca, err := lab.New(lab.Config{Iterations: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestTunnelWithEnrolledKeys(t *testing.T) {
	ca := newLab(t)
	t.Run("tlcp", func(t *testing.T) {
		s := tunnelWithEnrolledKeys(t, ca, newLabGateway(t, ca, "GW000000001"), nil)
		if s.Carrier != "tlcp" || s.Suite != "ECDHE_SM4_GCM_SM3" || s.CarrierWhy != "crypto.profile: mixed" {
			t.Errorf("carrier %s, %s, %s", s.Carrier, s.Suite, s.CarrierWhy)
		}
	})
	t.Run("tls", func(t *testing.T) {
		s := tunnelWithEnrolledKeys(t, ca, newLabGateway(t, ca, "GW000000001", carrier.NameTLS), func(c *Config) { c.Carrier = carrier.NameTLS })
		if s.Carrier != "tls1.3" || !strings.HasPrefix(s.Suite, "TLS_") || s.CarrierWhy != "carrier: tls" {
			t.Errorf("carrier %s, %s, %s", s.Carrier, s.Suite, s.CarrierWhy)
		}
	})
}

// An agent whose gateway does not speak its carrier has no tunnel, and says
// what to do; it does not try the other carrier.
func TestNoTunnelByAnotherCarrier(t *testing.T) {
	ca := newLab(t)
	g := newLabGateway(t, ca, "GW000000001", carrier.NameTLS)
	r := labAgent(t, ca, nil)
	tun, err := r.a.dialer.Dial(t.Context(), g.ref, g.ref.Addresses[0], wire.TunnelHello{AgentID: testID.AgentID}, nil)
	if err == nil {
		tun.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "speaks no TLCP") || len(g.hellos) != 0 {
		t.Errorf("got %v after %d hellos", err, len(g.hellos))
	}
}

func tunnelWithEnrolledKeys(t *testing.T, ca *lab.CA, g *labGateway, change func(*Config)) Status {
	r := labAgent(t, ca, change)
	if r.a.id != testID {
		t.Fatalf("identity %+v, want the certificate's", r.a.id)
	}
	r.link.resources.Gateways = []wire.GatewayRef{g.ref}
	r.serve()
	g.mu.Lock()
	h := g.hellos[0]
	g.mu.Unlock()
	if h.AgentID != testID.AgentID || h.DeviceID != testID.DeviceID || h.UserID != testUser || h.AuthToken != "aaaaaaaaaa1" || h.Version != 1 {
		t.Errorf("hello %+v", h)
	}
	c, code := socks(t, r.face("socks5"), "10.0.0.5:5432")
	if code != 0 {
		t.Fatalf("code %d", code)
	}
	roundTrip(t, c)
	g.mu.Lock()
	g.decide = func(*wire.AccessRequest) reason.Reason { return reason.PolicyTime }
	g.mu.Unlock()
	if _, code := socks(t, r.face("socks5"), "10.0.0.5:5432"); code != 2 {
		t.Errorf("refused by Table 13: code %d, want 2", code)
	}
	n, _ := r.a.notices.about("APP00000001")
	if n.Reason != reason.PolicyTime.Code() || !strings.Contains(n.ZH, reason.PolicyTime.Text(reason.Chinese)) {
		t.Errorf("notice %+v", n)
	}
	tok := r.link.token
	tok.AuthToken = "bbbbbbbbbb2"
	r.link.ev.Token(tok)
	r.wait("renewal", func(Status) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.renewals) == 1 && g.renewals[0] == tok.AuthToken
	})
	return r.a.Status()
}

func TestAGatewayCutsAFlowWithItsReason(t *testing.T) {
	ca := newLab(t)
	g := newLabGateway(t, ca, "GW000000001")
	r := labAgent(t, ca, nil)
	r.link.resources.Gateways = []wire.GatewayRef{g.ref}
	r.serve()
	c, code := socks(t, r.face("socks5"), "10.0.0.5:5432")
	if code != 0 {
		t.Fatalf("code %d", code)
	}
	r.wait("flow", func(s Status) bool { return s.Flows == 1 })
	g.mu.Lock()
	f := g.flow
	g.mu.Unlock()
	f.Reset(reason.GrantRevoked)
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the local program saw an orderly end, want a reset")
	}
	r.wait("notice", func(s Status) bool { return len(s.Notices) > 0 && s.Notices[0].Reason == reason.GrantRevoked.Code() })
}

func TestAGatewayMustBeTheOneOfTheList(t *testing.T) {
	ca, foreign := newLab(t), newLab(t)
	g1, g2, stranger := newLabGateway(t, ca, "GW000000001"), newLabGateway(t, ca, "GW000000002"), newLabGateway(t, foreign, "GW000000001")
	r := labAgent(t, ca, nil)
	mixed := func(addr *labGateway, id string, enc *labGateway) wire.GatewayRef {
		return wire.GatewayRef{ID: id, Addresses: addr.ref.Addresses, Enc: enc.ref.Enc, Sign: enc.ref.Sign}
	}
	for name, tc := range map[string]struct {
		ref  wire.GatewayRef
		want string
	}{
		"another gateway answers":     {mixed(g2, "GW000000001", g1), "not GW000000001's"},
		"another gateway's seal":      {mixed(g1, "GW000000001", g2), "it is GW000000002's"},
		"a foreign authority":         {mixed(stranger, "GW000000001", g1), "unknown authority"},
		"a foreign authority's seal":  {mixed(g1, "GW000000001", stranger), "verify encryption certificate"},
		"no certificate to seal with": {wire.GatewayRef{ID: "GW000000001", Addresses: g1.ref.Addresses}, "read encryption certificate"},
	} {
		tun, err := r.a.dialer.Dial(t.Context(), tc.ref, tc.ref.Addresses[0], wire.TunnelHello{AgentID: testID.AgentID}, nil)
		if err == nil {
			tun.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	for _, g := range []*labGateway{g1, g2, stranger} {
		if len(g.hellos) != 0 {
			t.Errorf("%s was told who we are: %+v", g.id, g.hellos)
		}
	}
}

func TestKeysOfAnotherKindOfPartyAreRefused(t *testing.T) {
	ca := newLab(t)
	store, err := ca.Party(filepath.Join(t.TempDir(), "keys"), []byte("pass"), certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identityOf(store); err == nil || !strings.Contains(err.Error(), "no agent's") {
		t.Errorf("got %v", err)
	}
}
