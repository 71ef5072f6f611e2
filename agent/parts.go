package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// connectParts fills identity, link, dialer and state: from the configuration
// where it names them, else from the enrolled keys.
func (a *Agent) connectParts() error {
	c := &a.cfg
	var keys *keystore.Store
	if c.NewLink == nil || c.Dialer == nil || c.Sealer == nil || c.Identity == (Identity{}) {
		pass, err := keystore.ReadPassphrase(c.PassphraseFile)
		if err != nil {
			return err
		}
		if keys, err = keystore.Open(c.Keys, pass); err != nil {
			return err
		}
	}
	a.id = c.Identity
	if a.id == (Identity{}) {
		id, err := identityOf(keys)
		if err != nil {
			return err
		}
		a.id = id
	}
	var err error
	if a.permits, err = newPermits(keys, c.Permit, c.Now); err != nil {
		c.Logger.Warn("long-lived permits not read", zap.Error(err))
	}
	newLink := c.NewLink
	if newLink == nil {
		newLink = func(e Events) (Link, error) { return a.controlLink(keys, e) }
	}
	link, err := newLink(Events{Token: a.onToken, Resources: a.setResources, SignedOut: a.onSignedOut})
	if err != nil {
		return err
	}
	a.link, a.dialer = link, c.Dialer
	if a.dialer == nil {
		if a.dialer, err = newGatewayDialer(keys, a.id, c, a.permits); err != nil {
			return err
		}
	}
	a.openKept(keys)
	key := c.Sealer
	if key == nil {
		signer, err := keys.Signer(keystore.Sign)
		if err != nil {
			return err
		}
		if key, err = NewStateKey(signer); err != nil {
			return err
		}
	}
	a.state, err = openState(c.StateDir, c.Keys, a.id, key)
	var altered *AlteredError
	if errors.As(err, &altered) {
		a.tamper = err
		return nil
	}
	return err
}

// identityOf reads who we are from the leaf that proves us in handshakes.
func identityOf(keys *keystore.Store) (Identity, error) {
	chain, err := keys.Chain(keystore.TLS)
	if err != nil {
		return Identity{}, err
	}
	id, err := certid.OfSM(chain[0])
	if err != nil {
		return Identity{}, err
	}
	if id.Agent == "" || id.Device == "" {
		return Identity{}, errors.New("read own certificate: it is no agent's (enrol with an agent's code)")
	}
	return Identity{AgentID: id.Agent, DeviceID: id.Device}, nil
}

func (a *Agent) controlLink(keys *keystore.Store, e Events) (Link, error) {
	return ctlclient.NewAgent(ctlclient.AgentConfig{
		URL: a.cfg.Control, AgentID: a.id.AgentID, DeviceID: a.id.DeviceID, Keys: keys, Crypto: a.cfg.Crypto.Profile, DeviceType: a.cfg.DeviceType,
		Longitude: wire.CoordinateOf(a.cfg.Longitude), Latitude: wire.CoordinateOf(a.cfg.Latitude),
		Posture: a.postureNow,
		OnToken: e.Token, OnResources: e.Resources, OnSignedOut: e.SignedOut, Alerts: alert.Func(a.raise), StateDir: a.cfg.StateDir, OutboxConfig: a.cfg.Outbox, Logger: a.cfg.Logger, Now: a.cfg.Now, Dial: a.permits.control,
	})
}

// nobody stands in Table 22 for the user while none has signed in yet.
const nobody = "00000000000"

// alertTable makes Table 22 of al (§9.4: type, level, time, content).
func (a *Agent) alertTable(al alert.Alert) *wire.AgentAlert {
	return &wire.AgentAlert{
		AgentID: a.id.AgentID, UserID: cmp.Or(a.lastUser(), nobody), DeviceID: a.id.DeviceID, Timestamp: wire.FormatTime(al.Time),
		ExceptionAlertType: string(al.Code), ExceptionAlertLevel: int(al.Level), ExceptionAlertContent: al.Content(reason.Chinese, a.id.DeviceID),
	}
}

// gatewayDialer makes tunnels over the carriers that the configuration names,
// and never over another. A gateway is known by the identity in its certificate
// under the pinned root, not by the name that was dialed.
type gatewayDialer struct {
	carriers []string // the best first
	seal     bool     // TLCP inside those by TLS
	tlcp     *channel.Client
	tls      *channel.Client
	conns    int           // of a tunnel over TCP
	climb    time.Duration // before a better carrier is tried again at first
	messages *smx509.CertPool
	sender   envelope.Sender
	chain    jsontext.Value // of sender, for the hello's extension
	now      func() time.Time
	permits  *permits
}

func newGatewayDialer(keys *keystore.Store, id Identity, c *Config, permits *permits) (*gatewayDialer, error) {
	now := c.Now
	d := &gatewayDialer{carriers: c.carriers(), seal: c.SealTunnels, conns: c.Connections, now: now, climb: climbFirst, permits: permits}
	if err := d.openChannels(keys); err != nil {
		return nil, err
	}
	messages, err := keys.Root(keystore.MessageRoot)
	if err != nil {
		return nil, err
	}
	signer, err := keys.Signer(keystore.Sign)
	if err != nil {
		return nil, err
	}
	chain, err := keys.Chain(keystore.Sign)
	if err != nil {
		return nil, err
	}
	d.messages, d.chain = messages, envelope.SignerExt(chain)
	d.sender = envelope.Sender{ID: id.AgentID, Key: signer, Cert: chain[0], Now: now}
	return d, nil
}

// Dial implements [Dialer].
func (d *gatewayDialer) Dial(ctx context.Context, gw wire.GatewayRef, addr string, hello wire.TunnelHello, notices func(*wire.Notice)) (Tunnel, error) {
	return d.dial(ctx, d.carriers, gw, addr, hello, notices)
}

// dial is Dial by some of the carriers.
func (d *gatewayDialer) dial(ctx context.Context, order []string, gw wire.GatewayRef, addr string, hello wire.TunnelHello, notices func(*wire.Notice)) (Tunnel, error) {
	enc, err := d.encCert(gw)
	if err != nil {
		return nil, err
	}
	by := make(map[string]*shown, len(order))
	for _, name := range order {
		by[name] = &shown{permit: gw.Permit}
	}
	conn, rank, lost, err := d.race(ctx, order, func(ctx context.Context, name string) (carrier.Conn, error) {
		return d.dialBy(ctx, name, gw, addr, by[name])
	})
	if err != nil {
		return nil, err
	}
	name := order[rank]
	several := d.conns > 1 && name != carrier.NameQUIC
	if several {
		hello.Tunnel = carrier.NewTunnelName()
	}
	cfg := carrier.ClientConfig{
		Identity: hello,
		Notices:  notices,
		Hello: func(h wire.TunnelHello) ([]byte, error) {
			body, err := wire.EncodeExtension(h)
			if err != nil {
				return nil, err
			}
			ext := map[string]jsontext.Value{wire.ExtSigner: d.chain}
			return d.sender.Seal(envelope.Header{MsgType: wire.TypeHello, Receiver: gw.ID, Ext: ext}, body, enc)
		},
	}
	c, err := carrier.Connect(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	t := carried{c, conn.State(), rank, lost, by[name].way}
	if several {
		t.ends = carrier.NewBundle(c, carrier.BundleConfig{
			Connections: d.conns, Token: hello.AuthToken,
			Join: func(ctx context.Context, token string) (*carrier.Client, error) {
				conn, err := d.dialBy(ctx, name, gw, addr, &shown{permit: gw.Permit})
				if err != nil {
					return nil, err
				}
				more := cfg
				more.Identity.AuthToken, more.Identity.Join = token, true
				return carrier.Connect(ctx, conn, more)
			},
		})
	}
	return t, nil
}

// encCert returns the certificate to seal for gw with, checked up to the
// pinned root.
func (d *gatewayDialer) encCert(gw wire.GatewayRef) (*smx509.Certificate, error) {
	cert, err := smx509.ParseCertificate(gw.Enc)
	if err != nil {
		return nil, fmt.Errorf("read encryption certificate of %s: %w", gw.ID, err)
	}
	if _, err := cert.Verify(smx509.VerifyOptions{Roots: d.messages, CurrentTime: d.now(), KeyUsages: []smx509.ExtKeyUsage{smx509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("verify encryption certificate of %s: %w", gw.ID, err)
	}
	id, err := certid.OfSM(cert)
	if err != nil {
		return nil, fmt.Errorf("verify encryption certificate of %s: %w", gw.ID, err)
	}
	if id.Gateway != gw.ID {
		return nil, fmt.Errorf("verify encryption certificate of %s: it is %s's", gw.ID, id.Name())
	}
	return cert, nil
}
