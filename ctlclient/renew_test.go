package ctlclient

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Renewed keys prove us on the next connection and sign the next message,
// without a restart; keys that cannot serve change nothing.
func TestRenewedKeysAreUsed(t *testing.T) {
	w := newWorld(t)
	c := w.center(w.gateway, gwID)
	var shown []string // serial numbers, in the order of the handshakes; written before each answer
	c.tlcp.VerifyConnection = func(s tlcp.ConnectionState) error {
		shown = append(shown, s.PeerSign.SerialNumber.String())
		return nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() { defer close(done); c.serve(ln) }()
	defer func() { c.srv.Close(); <-done }()
	cfg := w.gatewayConfig(c, &enforcer{})
	cfg.URL, cfg.Dial = "https://"+ln.Addr().String(), nil
	g := newGateway(t, cfg)
	defer g.Close()
	must(t, g.identify(context.Background()))

	id := certid.Identity{Gateway: gwID, Device: gwDev}
	broken := w.party("broken", id)
	must(t, broken.PutChain(keystore.ControlSign, []byte(certPEM(t, w.gateway, keystore.Sign))))
	if err := g.Renew(broken, profile.Mixed); err == nil || !strings.Contains(err.Error(), "control-sign.crt") {
		t.Errorf("a folder without the control center's certificate: %v", err)
	}
	must(t, g.identify(context.Background()))

	renewed := w.party("renewed", id)
	opener, err := w.control.Decrypter(keystore.Enc)
	must(t, err)
	c.in, err = envelope.NewReceiver(envelope.Config{ID: ctlID, Decrypter: opener, RequireSealed: true, Signers: envelope.Pinned(leaf(t, renewed, keystore.Sign))})
	must(t, err)
	c.party = renewed
	must(t, g.Renew(renewed, profile.Mixed))
	must(t, g.identify(context.Background())) // its signature is taken, and the answer sealed to the new key opens
	if len(shown) != 2 || shown[0] != leaf(t, w.gateway, keystore.TLCPSign).SerialNumber.String() || shown[1] != leaf(t, renewed, keystore.TLCPSign).SerialNumber.String() {
		t.Errorf("certificates shown: %v", shown)
	}
}
