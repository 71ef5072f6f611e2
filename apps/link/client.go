package link

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/wire"
)

// ClientConfig is what a [Client] needs. The zero value of an optional field
// selects its default.
type ClientConfig struct {
	URL     string          // https base of the gateway, by the name of its app_link.host; required
	Address string          // host:port to dial instead of the URL's
	Keys    *keystore.Store // an application's: tls, tlcp, sign, enc and the roots; required
	Crypto  profile.Profile // by which protocol; default mixed, by TLCP
	AppName string          // appName; default: the appId
	Service string          // host:port of the application, probed before each report; required

	Interval time.Duration // between reports; default and most 55 s (§6.2)
	Logger   *zap.Logger   // default: none
	Now      func() time.Time
}

// Client keeps an application online: it probes the application and reports
// Table 1, at least every 55 s and at once when the state changes. It stands
// in for an application that cannot speak the standard itself.
type Client struct {
	cfg    ClientConfig
	app    string
	http   *http.Client
	sender *envelope.Sender
	chain  []*smx509.Certificate
	enc    []*smx509.Certificate
	roots  *smx509.CertPool
	open   *envelope.Receiver

	gateway *smx509.Certificate // its encryption certificate, learned from the channel's first answer; nil before
}

// NewClient checks cfg and reads the keys.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.URL == "" || cfg.Keys == nil || cfg.Service == "" {
		return nil, errors.New("make application connector: the gateway's URL, the keys and the service are required")
	}
	if cfg.Interval <= 0 || cfg.Interval > 55*time.Second {
		cfg.Interval = 55 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := cfg.Crypto.Check(); err != nil {
		return nil, fmt.Errorf("make application connector: crypto profile %w", err)
	}
	channels, err := channel.New(channel.Config{
		Keys: cfg.Keys, TLCP: cfg.Crypto.TLCP(), ALPN: []string{"http/1.1"}, Timeout: 5 * time.Second, Now: cfg.Now,
		Peer: func(certid.Identity) error { return nil }, // known by its name under the root; Table 2 proves which gateway it is
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if cfg.Address != "" {
				addr = cfg.Address
			}
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg}
	chain, err := cfg.Keys.Chain(keystore.Sign)
	if err != nil {
		return nil, err
	}
	id, err := certid.OfSM(chain[0])
	if err != nil {
		return nil, err
	}
	if id.App == "" {
		return nil, fmt.Errorf("make application connector: the keys in %s are not an application's (enrol with a code of kind app)", cfg.Keys.Dir())
	}
	c.app = id.App
	if c.cfg.AppName == "" {
		c.cfg.AppName = c.app
	}
	if c.sender, c.chain, err = party(cfg.Keys, c.app, cfg.Now); err != nil {
		return nil, err
	}
	if c.enc, err = cfg.Keys.Chain(keystore.Enc); err != nil {
		return nil, err
	}
	if c.roots, err = cfg.Keys.Root(keystore.MessageRoot); err != nil {
		return nil, err
	}
	dec, err := cfg.Keys.Decrypter(keystore.Enc)
	if err != nil {
		return nil, err
	}
	if c.open, err = envelope.NewReceiver(envelope.Config{
		ID: c.app, Decrypter: dec, RequireSealed: true, Now: cfg.Now, Resolve: envelope.PartySigner(c.roots, cfg.Now),
	}); err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Timeout:       10 * time.Second,
		Transport:     &http.Transport{DialTLSContext: channels.Dial, IdleConnTimeout: 2 * time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the gateway never redirects") },
	}
	return c, nil
}

// probeInterval is how often the application is probed between reports.
const probeInterval = 5 * time.Second

// Run reports until ctx is done, and then that the application is offline.
func (c *Client) Run(ctx context.Context) error {
	reported, last, failures := -1, time.Time{}, 0
	for {
		state := c.probe(ctx)
		if now := c.cfg.Now(); state != reported || now.Sub(last) >= c.cfg.Interval-probeInterval {
			t2, err := c.Report(ctx, state)
			if err != nil {
				failures++
				c.cfg.Logger.Warn("report failed", zap.String("app_id", c.app), zap.Int("failures", failures), zap.Error(err))
			} else {
				if state != reported {
					c.cfg.Logger.Info("application reported", zap.String("app_id", c.app), zap.Int("state", state), zap.String("expiry", t2.Expiry))
				}
				reported, last, failures = state, now, 0
			}
		}
		pause := probeInterval - time.Duration(mathrand.Int64N(int64(time.Second)))
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			_, err := c.Report(end, wire.Offline)
			return err
		case <-time.After(pause):
		}
	}
}

// probe reports whether the application takes connections.
func (c *Client) probe(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.cfg.Service)
	if err != nil {
		return wire.Offline
	}
	conn.Close()
	return wire.Online
}

// Report sends one Table 1 and returns the verified Table 2. An error says why
// the gateway refused.
func (c *Client) Report(ctx context.Context, state int) (*wire.AppIdentityReply, error) {
	host, port, err := net.SplitHostPort(c.cfg.Service)
	if err != nil {
		return nil, fmt.Errorf("report to gateway: service: %w", err)
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return nil, fmt.Errorf("report to gateway: service: %w", err)
	}
	if net.ParseIP(host) == nil {
		host = "127.0.0.1" // information only (Table 1 ip)
	}
	nonce := newKey()
	body, err := wire.Encode(&wire.AppIdentity{
		AppID: c.app, AppName: c.cfg.AppName, State: state, Timestamp: wire.FormatTime(c.cfg.Now()), IP: host, Port: n,
		AuthMethod: MethodMTLS, Nonce: nonce,
	})
	if err != nil {
		return nil, err
	}
	if c.gateway == nil {
		if c.gateway, err = c.gatewayCert(ctx); err != nil {
			return nil, err
		}
	}
	gw, err := certid.OfSM(c.gateway)
	if err != nil {
		return nil, err
	}
	raw, err := c.sender.Seal(envelope.Header{MsgType: "T1", Receiver: gw.Gateway, Ext: map[string]jsontext.Value{
		extSigner: envelope.SignerExt(c.chain), extEnc: envelope.SignerExt(c.enc),
	}}, body, c.gateway)
	if err != nil {
		return nil, err
	}
	resp, answer, err := c.do(ctx, http.MethodPost, IdentityPath, raw)
	if err != nil {
		return nil, err
	}
	m, err := c.open.Open(answer, "T2")
	if err != nil {
		c.gateway = nil // it may have new keys
		return nil, fmt.Errorf("report to gateway: status %d: %s", resp.StatusCode, wire.CleanText(string(answer), 200))
	}
	if m.Header.Sender != gw.Gateway {
		return nil, fmt.Errorf("report to gateway: Table 2 comes from %s", m.Header.Sender)
	}
	t2, err := wire.Decode[wire.AppIdentityReply](m.Body, wire.Profile{})
	if err != nil {
		return nil, err
	}
	if t2.Code != wire.Success {
		return t2, fmt.Errorf("report to gateway: refused: %s", t2.Result)
	}
	return t2, c.verify(t2, nonce, m.Signer)
}

// verify checks the signature of Table 2 itself (M33).
func (c *Client) verify(t2 *wire.AppIdentityReply, nonce string, signer *smx509.Certificate) error {
	b, err := signedReply(c.app, t2, nonce)
	if err != nil {
		return err
	}
	sig, err := base64.StdEncoding.DecodeString(t2.Signature)
	if err != nil || t2.SignatureType != envelope.SigSM2SM3 || !sm2.VerifyASN1WithSM2(publicKey(signer), nil, b, sig) {
		return errors.New("report to gateway: the signature of Table 2 does not verify")
	}
	return nil
}

// gatewayCert asks the gateway for its encryption certificate and verifies it
// under the message root, for a gateway.
func (c *Client) gatewayCert(ctx context.Context) (*smx509.Certificate, error) {
	resp, raw, err := c.do(ctx, http.MethodGet, IdentityPath, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask gateway for its certificate: status %d: %s", resp.StatusCode, wire.CleanText(string(raw), 200))
	}
	var v struct {
		Enc jsontext.Value `json:"enc"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, fmt.Errorf("ask gateway for its certificate: %w", err)
	}
	cert, err := verifiedCert(v.Enc, c.roots, c.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("ask gateway for its certificate: %w", err)
	}
	if id, err := certid.OfSM(cert); err != nil || id.Gateway == "" {
		return nil, errors.New("ask gateway for its certificate: it is not a gateway's")
	}
	return cert, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.cfg.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("ask gateway: %w", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, nil, fmt.Errorf("ask gateway: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxMessage))
	if err != nil {
		return nil, nil, fmt.Errorf("ask gateway: %w", err)
	}
	return resp, raw, nil
}
