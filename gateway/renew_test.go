package gateway

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// renew puts new keys of the same gateway into its folder.
func (w *world) renew() {
	w.t.Helper()
	must(w.t, os.RemoveAll(filepath.Join(w.dir, "keys")))
	w.keys = w.party(w.ca, "keys", certid.Identity{Gateway: gwID, Device: gwDev}, host1, host2, "login.test", "127.0.0.1")
}

// leaf returns the certificate of a key.
func (w *world) leaf(s *keystore.Store, name string) *smx509.Certificate {
	w.t.Helper()
	chain, err := s.Chain(name)
	must(w.t, err)
	return chain[0]
}

// tunnel opens a tunnel to the gateway by TLCP, with a hello that is sealed to
// enc, and returns the certificate that it was shown.
func (w *world) tunnel(agent *keystore.Store, enc *smx509.Certificate) (*smx509.Certificate, *carrier.Client, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	channels, err := channel.New(channel.Config{Keys: agent, TLCP: true, ALPN: []string{carrier.ALPN}, Peer: func(id certid.Identity) error {
		if id.Gateway != gwID {
			return fmt.Errorf("the gateway is %q", id.Name())
		}
		return nil
	}})
	must(w.t, err)
	conn, err := (&carrier.TCP{Channel: channels}).Dial(ctx, w.addr)
	if err != nil {
		return nil, nil, err
	}
	shown, err := smx509.ParseCertificate(conn.State().Peer.Raw)
	must(w.t, err)
	key, err := agent.Signer(keystore.Sign)
	must(w.t, err)
	chain, err := agent.Chain(keystore.Sign)
	must(w.t, err)
	s := envelope.Sender{ID: "AGT00000001", Key: key, Cert: chain[0]}
	claim := wire.TunnelHello{AgentID: "AGT00000001", DeviceID: dev, UserID: user, AuthToken: "tok00000000"}
	c, err := carrier.Connect(ctx, conn, carrier.ClientConfig{Identity: claim, Hello: func(h wire.TunnelHello) ([]byte, error) {
		body, err := wire.EncodeExtension(h)
		if err != nil {
			return nil, err
		}
		return s.Seal(envelope.Header{MsgType: wire.TypeHello, Receiver: gwID, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)}}, body, enc)
	}})
	return shown, c, err
}

// A reload that finds renewed keys hands them over to what stays: new tunnels
// are shown the new certificates and open with the new key, the old one opens
// nothing any more, and a tunnel that stands goes on.
func TestReloadHandsKeysToTunnels(t *testing.T) {
	w := newWorld(t)
	w.start()
	agent := w.party(w.ca, "agent", certid.Identity{Agent: "AGT00000001", Device: dev})
	oldEnc, oldSign := w.leaf(w.keys, keystore.Enc), w.leaf(w.keys, keystore.TLCPSign)
	shown, stands, err := w.tunnel(agent, oldEnc)
	must(t, err)
	defer stands.Close()
	if !shown.Equal(oldSign) {
		t.Errorf("shown %v", shown.SerialNumber)
	}

	// Keys that cannot serve: everything stays.
	enc := filepath.Join(w.dir, "keys", keystore.TLCPEnc+".crt")
	good, err := os.ReadFile(enc)
	must(t, err)
	must(t, os.WriteFile(enc, []byte("nothing"), 0o644))
	if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), keystore.TLCPEnc) {
		t.Errorf("a broken certificate: %v", err)
	}
	must(t, os.WriteFile(enc, good, 0o644))
	if shown, c, err := w.tunnel(agent, oldEnc); err != nil || !shown.Equal(oldSign) {
		t.Errorf("after a reload that was refused: %v", err)
	} else {
		c.Close()
	}

	w.renew()
	w.lists(2, 2, user+" "+dev+" "+app1)
	must(t, w.g.Reload())
	shown, c, err := w.tunnel(agent, w.leaf(w.keys, keystore.Enc))
	if err != nil {
		t.Fatalf("a hello that is sealed to the new key: %v", err)
	}
	defer c.Close()
	if !shown.Equal(w.leaf(w.keys, keystore.TLCPSign)) {
		t.Errorf("shown %v after the renewal", shown.SerialNumber)
	}
	if _, c, err := w.tunnel(agent, oldEnc); err == nil {
		c.Close()
		t.Error("a hello that is sealed to the old key was opened")
	}
	if got := w.shown(); got.Cmp(w.leaf(w.keys, keystore.TLCPSign).SerialNumber) != 0 {
		t.Error("browsers are shown the old certificate")
	}
	select {
	case <-stands.Done():
		t.Error("the tunnel that stood was ended")
	default:
	}
}

// The link to the control center signs with the renewed key from the reload on,
// and with the old one after a reload that was refused.
func TestReloadHandsKeysToTheLink(t *testing.T) {
	w := newWorld(t)
	c := w.center(twoApps)
	c.set(wire.GrantsList, 1, w.list(w.control, gwID, wire.GrantsList, 1, user+" "+dev+" "+app1))
	c.set(wire.PoliciesList, 1, w.list(w.control, gwID, wire.PoliciesList, 1))
	w.start()
	await(t, 10*time.Second, "Table 10", func() bool { return c.last("T10") != nil })
	old := w.leaf(w.keys, keystore.Sign)
	// An alert goes out at once: by its signature one sees which key is in use.
	alerts := 0
	signed := func() *smx509.Certificate {
		t.Helper()
		alerts++
		app := fmt.Sprintf("APP%08d", 70+alerts)
		w.g.alerts.Raise(alert.Alert{Code: alert.AppDown, AppID: app})
		var signer *smx509.Certificate
		await(t, 10*time.Second, "Table 11", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, m := range c.got {
				if m.Header.MsgType == "T11" && bytes.Contains(m.Body, []byte(app)) {
					signer = m.Signer
				}
			}
			return signer != nil
		})
		return signer
	}
	if got := signed(); !got.Equal(old) {
		t.Errorf("signed by %v at first", got.SerialNumber)
	}
	w.renew()
	now := w.leaf(w.keys, keystore.Sign)
	dec, err := w.control.Decrypter(keystore.Enc)
	must(t, err)
	both, err := envelope.NewReceiver(envelope.Config{ID: ctlID, Decrypter: dec, RequireSealed: true, Signers: envelope.Pinned(old, now)})
	must(t, err)
	c.mu.Lock()
	c.in = both
	c.mu.Unlock()
	pinned := filepath.Join(w.dir, "keys", keystore.ControlSign+".crt")
	good, err := os.ReadFile(pinned)
	must(t, err)
	must(t, os.WriteFile(pinned, []byte("nothing"), 0o644))
	if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), keystore.ControlSign) {
		t.Errorf("a folder without the control center's certificate: %v", err)
	}
	if got := signed(); !got.Equal(old) {
		t.Errorf("signed by %v after a reload that was refused", got.SerialNumber)
	}
	must(t, os.WriteFile(pinned, good, 0o644))
	must(t, w.g.Reload())
	if got := signed(); !got.Equal(now) {
		t.Errorf("signed by %v after the renewal", got.SerialNumber)
	}
}
