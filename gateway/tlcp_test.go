package gateway

//lint:file-ignore SA1019 net/http offers HTTP/2 by ALPN to *tls.Conn only; x/net/http2 takes any connection

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
)

// tlcpPair issues a TLCP pair for these hosts and URIs.
func (w *world) tlcpPair(hosts []string, uris ...string) [2]tlcp.Certificate {
	w.t.Helper()
	dir := filepath.Join(w.dir, "ca")
	must(w.t, w.ca.Save(dir, pass))
	store, err := keystore.Open(dir, pass)
	must(w.t, err)
	signer, err := store.Signer("tlcp-ca")
	must(w.t, err)
	root, err := keystore.ParseChain(w.ca.RootPEM(keystore.TLCPRoot))
	must(w.t, err)
	var pair [2]tlcp.Certificate
	for i, usage := range []smx509.KeyUsage{smx509.KeyUsageDigitalSignature, smx509.KeyUsageKeyEncipherment | smx509.KeyUsageKeyAgreement} {
		key, err := sm2.GenerateKey(rand.Reader)
		must(w.t, err)
		c := &smx509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "pair"}, DNSNames: hosts,
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: usage,
			ExtKeyUsage: []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth},
		}
		for _, s := range uris {
			u, err := url.Parse(s)
			must(w.t, err)
			c.URIs = append(c.URIs, u)
		}
		der, err := smx509.CreateCertificate(rand.Reader, c, root[0], key.Public(), signer)
		must(w.t, err)
		cert, err := smx509.ParseCertificate(der)
		must(w.t, err)
		pair[i] = tlcp.Certificate{Chain: []*smx509.Certificate{cert}, Key: key}
	}
	return pair
}

// tlcpAlice is the user's TLCP pair on her device.
func (w *world) tlcpAlice() *tlcp.Pair {
	w.t.Helper()
	c := w.tlcpPair(nil, "urn:yumen:device:"+dev, "urn:yumen:user:"+user)
	pair, err := tlcp.NewPair(c[0], c[1])
	must(w.t, err)
	return pair
}

// tlcpDial returns a dialer to the gateway, whatever the address. It resumes
// sessions unless there are no protocols.
func (w *world) tlcpDial(pair *tlcp.Pair, protos ...string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	w.t.Helper()
	roots, err := w.keys.Root(keystore.TLCPRoot)
	must(w.t, err)
	cache := tlcp.NewLRUSessionCache(16)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		c := &tlcp.Config{RootCAs: roots, ServerName: host, NextProtos: protos}
		if len(protos) > 0 {
			c.SessionCache = cache
		}
		if pair != nil {
			c.Certificates = []*tlcp.Pair{pair}
		}
		return (&tlcp.Dialer{Config: c}).DialContext(ctx, network, w.addr)
	}
}

// tlcpClient is a client of HTTP/1.1 or HTTP/2 over TLCP.
func (w *world) tlcpClient(pair *tlcp.Pair, h2 bool) *http.Client {
	if h2 {
		dial := w.tlcpDial(pair, "h2")
		tr := &http2.Transport{DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, network, addr)
		}}
		w.t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	tr := &http.Transport{DialTLSContext: w.tlcpDial(pair, "http/1.1")}
	w.clients = append(w.clients, tr)
	return &http.Client{Transport: tr}
}

func TestGCR002_M5_RequestsOverTLCP(t *testing.T) {
	w := newWorld(t)
	w.start()
	alice := w.tlcpAlice()
	for _, h2 := range []bool{false, true} {
		c := w.tlcpClient(alice, h2)
		r, err := c.Get("https://" + host1 + "/")
		if err != nil {
			t.Fatalf("h2 %v: %v", h2, err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if want := 1 + map[bool]int{true: 1}[h2]; err != nil || r.StatusCode != 200 || r.ProtoMajor != want || !strings.Contains(string(body), user) {
			t.Errorf("h2 %v: %s %d %q %v", h2, r.Proto, r.StatusCode, body, err)
		}
	}
	w.audited(`"protocol":"tlcp","suite":"ECDHE_SM4_GCM_SM3"`)
}

// audited waits for part in the audit file, which gathers a few milliseconds.
func (w *world) audited(part string) {
	w.t.Helper()
	var got string
	for range 500 {
		if got = w.auditText(); strings.Contains(got, part) {
			return
		}
		time.Sleep(10 * time.Millisecond) // another goroutine's progress: nothing to wait on
	}
	w.t.Errorf("the audit lacks %s: %s", part, got)
}

// A policy may demand TLCP for an application: a TLS client gets the page that
// says so, a TLCP client the application.
func TestTLCPOnlyForOneApplication(t *testing.T) {
	w := newWorld(t)
	w.lists(2, 2, user+" "+dev+" "+app1+","+app2)
	w.config(twoApps + "ceiling: [{type: tls, data: tlcp, scope: APP00000001}]\n")
	w.start()
	byTLS, byTLCP := w.client(w.alice()), w.tlcpClient(w.tlcpAlice(), false)
	w.want(byTLS, "https://"+host1+"/", 403, reason.PolicyTLS.Code())
	w.want(byTLS, "https://"+host1+"/", 403, reason.PolicyTLS.Text(reason.Chinese))
	w.want(byTLS, "https://"+host2+"/", 200, user)
	w.want(byTLCP, "https://"+host1+"/", 200, user)
	w.want(byTLCP, "https://"+host2+"/", 200, user)
	w.audited(`"result":"policy_tls"`)
}

// crypto.profile is the whole gateway's; the status says which it is and what
// the sessions run over.
func TestS24_ProfileOfTheGateway(t *testing.T) {
	w := newWorld(t)
	alice, pair := w.alice(), w.tlcpAlice()
	reach := func() (overTLS, overTLCP bool) {
		a, _ := w.get(w.client(alice), "https://"+host1+"/")
		b, _ := w.get(w.tlcpClient(pair, true), "https://"+host1+"/")
		return a == 200, b == 200
	}
	for _, c := range []struct {
		profile   string
		tls, tlcp bool
	}{{"gm", false, true}, {"intl", true, false}, {"", true, true}} {
		more := ""
		if c.profile != "" {
			more = "crypto: {profile: " + c.profile + "}\n"
		}
		w.config(twoApps + more)
		w.start()
		if a, b := reach(); a != c.tls || b != c.tlcp {
			t.Errorf("profile %q: TLS served %v, TLCP %v", c.profile, a, b)
		}
		var s Status
		must(t, w.admin("GET", "/status", nil, &s))
		want := map[string]int{}
		if c.tls {
			want["tls1.3 TLS_AES_128_GCM_SHA256"] = 1
		}
		if c.tlcp {
			want["tlcp ECDHE_SM4_GCM_SM3"] = 1
		}
		if s.Profile != cmp.Or(c.profile, "mixed") || !maps.Equal(s.Protocols, want) {
			t.Errorf("status: profile %q, sessions %v, want %v", s.Profile, s.Protocols, want)
		}
		var all []access.SessionInfo
		must(t, w.admin("GET", "/sessions", nil, &all))
		if len(all) != len(want) || !slices.ContainsFunc(all, func(i access.SessionInfo) bool { return want[i.Protocol+" "+i.Suite] == 1 }) {
			t.Errorf("sessions %+v, want %v", all, want)
		}
		w.config(twoApps + "crypto: {profile: " + map[string]string{"gm": "mixed", "intl": "gm", "": "gm"}[c.profile] + "}\n")
		if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), "crypto.profile: changed (a restart is needed)") {
			t.Errorf("another profile by a reload: %v", err)
		}
		must(t, w.stop())
	}
	w.config(twoApps + "crypto: {profile: GM}\n")
	if _, err := Load(filepath.Join(w.dir, "gateway.yaml")); err == nil || !strings.Contains(err.Error(), "crypto.profile") {
		t.Errorf("a profile that is none: %v", err)
	}
}

// pairFiles writes a pair as four files and returns their configuration.
func (w *world) pairFiles(sign, enc tlcp.Certificate) string {
	w.t.Helper()
	for name, c := range map[string]tlcp.Certificate{"sign": sign, "enc": enc} {
		w.write(name+".crt", string(keystore.EncodeChain(c.Chain...)), 0o644)
		der, err := smx509.MarshalPKCS8PrivateKey(c.Key.(*sm2.PrivateKey))
		must(w.t, err)
		w.write(name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600)
	}
	return "certificates:\n  - {sign_cert_file: sign.crt, sign_key_file: sign.pem, enc_cert_file: enc.crt, enc_key_file: enc.pem}\n"
}

// shown returns the serial number of the signing certificate that the gateway
// shows for host1.
func (w *world) shown() *big.Int {
	w.t.Helper()
	c, err := w.tlcpDial(w.tlcpAlice(), "http/1.1")(w.t.Context(), "tcp", host1+":443")
	must(w.t, err)
	defer c.Close()
	return c.(*tlcp.Conn).ConnectionState().PeerSign.SerialNumber
}

// A pair at fault is refused with which of the two it is and how, and the old
// one stays.
func TestBrokenPairsKeepTheOldOne(t *testing.T) {
	w := newWorld(t)
	good := w.tlcpPair([]string{host1})
	w.config(twoApps + w.pairFiles(good[0], good[1]))
	w.start()
	serial := good[0].Chain[0].SerialNumber
	if got := w.shown(); got.Cmp(serial) != 0 {
		t.Fatalf("serial %v is shown, want %v", got, serial)
	}
	other := w.tlcpPair([]string{host1, host2})
	for name, c := range map[string]struct {
		sign, enc tlcp.Certificate
		spoil     func()
		says      []string
	}{
		"exchanged":         {sign: good[1], enc: good[0], says: []string{"certificates[0]", "exchanged"}},
		"two to sign":       {sign: good[0], enc: other[0], says: []string{"encryption certificate", "digitalSignature", "keyEncipherment"}},
		"two to encrypt":    {sign: other[1], enc: good[1], says: []string{"signing certificate", "keyEncipherment+keyAgreement", "digitalSignature is needed"}},
		"another's key":     {sign: tlcp.Certificate{Chain: good[0].Chain, Key: other[0].Key}, enc: good[1], says: []string{"signing certificate", "another certificate's"}},
		"other names":       {sign: other[0], enc: good[1], says: []string{"encryption certificate", "does not name " + host2}},
		"no key":            {sign: good[0], enc: good[1], spoil: func() { w.write("enc.pem", "nothing", 0o600) }, says: []string{"encryption certificate", "enc.pem", "no PEM private key"}},
		"key for all":       {sign: good[0], enc: good[1], spoil: func() { w.write("sign.pem", "x", 0o644) }, says: []string{"certificates[0].sign_key_file", "chmod 600"}},
		"no certificate":    {sign: good[0], enc: good[1], spoil: func() { w.write("sign.crt", "x", 0o644) }, says: []string{"signing certificate", "sign.crt", "no PEM certificate"}},
		"half of the files": {sign: good[0], enc: good[1], spoil: func() { w.config(twoApps + "certificates: [{sign_cert_file: sign.crt}]\n") }, says: []string{"certificates[0]", "go together"}},
	} {
		w.config(twoApps + w.pairFiles(c.sign, c.enc))
		if c.spoil != nil {
			c.spoil()
		}
		err := w.g.Reload()
		for _, s := range c.says {
			if err == nil || !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v, want it to say %q", name, err, s)
			}
		}
		if got := w.shown(); got.Cmp(serial) != 0 {
			t.Errorf("%s: serial %v is shown now", name, got)
		}
	}
	w.config(twoApps + w.pairFiles(other[0], other[1]))
	must(t, w.g.Reload())
	if got := w.shown(); got.Cmp(other[0].Chain[0].SerialNumber) != 0 {
		t.Errorf("serial %v is shown after a good reload", got)
	}
}

// R16: certificates are replaced under load, and no handshake fails.
func TestR16_RotationsUnderLoad(t *testing.T) {
	rotations := 20
	if os.Getenv("YUMEN_LONG") == "1" {
		rotations = 100
	}
	w := newWorld(t)
	write := func() string {
		pair := w.tlcpPair([]string{host1})
		return w.pairFiles(pair[0], pair[1]) + w.webFiles()
	}
	w.config(twoApps + write())
	w.start()
	alice, pair := w.alice(), w.tlcpAlice()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.RootPEM(keystore.TLSRoot))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var done [2]atomic.Int64
	seen := [2]map[string]bool{{}, {}}
	var load sync.WaitGroup
	dialTLCP := w.tlcpDial(pair)
	for i, dial := range []func() (string, error){
		func() (string, error) {
			d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: host1, Certificates: []tls.Certificate{*alice}}}
			c, err := d.DialContext(ctx, "tcp", w.addr)
			if err != nil {
				return "", err
			}
			defer c.Close()
			return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String(), oneRequest(c)
		},
		func() (string, error) {
			c, err := dialTLCP(ctx, "tcp", host1+":443")
			if err != nil {
				return "", err
			}
			defer c.Close()
			return c.(*tlcp.Conn).ConnectionState().PeerSign.SerialNumber.String(), oneRequest(c)
		},
	} {
		load.Go(func() {
			for ctx.Err() == nil {
				serial, err := dial()
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("protocol %d, handshake %d: %v", i, done[i].Load(), err)
					}
					return
				}
				seen[i][serial] = true
				done[i].Add(1)
			}
		})
	}
	for range rotations {
		at := [2]int64{done[0].Load(), done[1].Load()}
		w.config(twoApps + write())
		must(t, w.g.Reload())
		for i := range done { // each pair is seen by handshakes of both protocols
			for done[i].Load() < at[i]+2 && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
		}
	}
	stop()
	load.Wait()
	t.Logf("%d rotations; TLS: %d handshakes, %d certificates seen; TLCP: %d, %d", rotations, done[0].Load(), len(seen[0]), done[1].Load(), len(seen[1]))
	if len(seen[0]) < rotations/2 || len(seen[1]) < rotations/2 {
		t.Errorf("of %d certificates %d and %d were seen", rotations, len(seen[0]), len(seen[1]))
	}
}

// oneRequest asks for the application over c.
func oneRequest(c net.Conn) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host1+"\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil || r.StatusCode != 200 {
		return fmt.Errorf("status %d, %w", r.StatusCode, err)
	}
	return nil
}

// webFiles writes a TLS certificate for host1 and returns its configuration, an
// entry of the list that pairFiles begins.
func (w *world) webFiles() string {
	w.t.Helper()
	c := w.certificateFor([]string{host1})
	w.write("web.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})), 0o644)
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	must(w.t, err)
	w.write("web.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600)
	return "  - {cert_file: web.crt, key_file: web.pem}\n"
}

// GB/T 38636 has no server names: a client that sends none is shown the first
// pair of the configuration and is served by its Host, with the certificate
// that the host demands.
func TestTLCPWithoutServerName(t *testing.T) {
	w := newWorld(t)
	c := w.tlcpPair([]string{host1, host2})
	w.config(twoApps + w.pairFiles(c[0], c[1]))
	w.start()
	roots, err := w.keys.Root(keystore.TLCPRoot)
	must(t, err)
	ask := func(pair *tlcp.Pair) (string, error) {
		cfg := &tlcp.Config{RootCAs: roots, ServerName: host1, NoExtensions: true}
		if pair != nil {
			cfg.Certificates = []*tlcp.Pair{pair}
		}
		conn, err := tlcp.Dial(t.Context(), "tcp", w.addr, cfg)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerSign.SerialNumber.String(), oneRequest(conn)
	}
	if serial, err := ask(w.tlcpAlice()); err != nil || serial != c[0].Chain[0].SerialNumber.String() {
		t.Errorf("shown %s, %v", serial, err)
	}
	if _, err := ask(nil); err == nil {
		t.Error("served without the certificate that every host demands")
	}
	r, err := w.client(w.alice()).Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
	must(t, err)
	defer r.Close()
	plain := tls.Client(r, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*w.alice()}}) // the certificate is not what is tested
	if err := oneRequest(plain); err == nil || !strings.Contains(err.Error(), "421") {
		t.Errorf("TLS without a server name: %v, want 421", err)
	}
}
