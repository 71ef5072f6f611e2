package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
)

// messageKeys are the keys and certificates of messages, ours and the control
// center's. They do not change; a renewal makes others.
type messageKeys struct {
	controlID string
	sender    envelope.Sender
	sealTo    *smx509.Certificate
	replies   *envelope.Receiver
}

// loadMessageKeys reads our signing key and the control center's certificates.
func (c *caller) loadMessageKeys(keys *keystore.Store) (*messageKeys, error) {
	key, err := keys.Signer(keystore.Sign)
	if err != nil {
		return nil, err
	}
	chain, err := keys.Chain(keystore.Sign)
	if err != nil {
		return nil, err
	}
	m := &messageKeys{sender: envelope.Sender{ID: c.cfg.id, Key: key, Cert: chain[0], Now: c.cfg.now}}
	control, err := keys.Chain(keystore.ControlSign)
	if err != nil {
		return nil, err
	}
	enc, err := keys.Chain(keystore.ControlEnc)
	if err != nil {
		return nil, err
	}
	m.sealTo = enc[0]
	roots, err := keys.Root(keystore.MessageRoot)
	if err != nil {
		return nil, err
	}
	for _, chain := range [][]*smx509.Certificate{control, enc} {
		if err := verifyChain(chain, roots, c.cfg.now()); err != nil {
			return nil, fmt.Errorf("verify the control center's message certificates: %w", err)
		}
	}
	id, err := certid.OfSM(control[0])
	if err != nil || id.Control == "" {
		return nil, errors.New("read control-sign.crt: it is no control center's certificate")
	}
	if m.controlID = id.Control; c.cfg.controlID != "" && c.cfg.controlID != id.Control {
		return nil, fmt.Errorf("read control-sign.crt: it is of %s, the configuration names %s", id.Control, c.cfg.controlID)
	}
	opener, err := keys.Decrypter(keystore.Enc)
	if err != nil {
		return nil, err
	}
	want := envelope.KeyID(control[0])
	m.replies, err = envelope.NewReceiver(envelope.Config{
		ID: c.cfg.id, Decrypter: opener, RequireSealed: c.cfg.requireSealed, MaxBytes: maxReplyBytes, Now: c.cfg.now,
		Signers: func(keyID, sender string) (*smx509.Certificate, error) {
			if keyID != want || sender != id.Control {
				return nil, errors.New("not the control center's key")
			}
			return control[0], nil
		},
	})
	return m, err
}

// newChannels makes the dialer that proves us by our certificate and demands
// the control center's: a chain to the pinned root, its host name and its
// identifier. crypto.profile names the protocol; a control center that does not
// speak it is an error.
func (c *caller) newChannels() (*channel.Client, error) {
	return channel.New(channel.Config{
		Keys: c.cfg.keys, TLCP: c.cfg.crypto.TLCP(), ALPN: []string{"http/1.1"}, Timeout: c.cfg.timeout, Dial: c.cfg.dial, Now: c.cfg.now,
		Peer: func(id certid.Identity) error {
			if id.Control != c.cfg.controlID {
				return fmt.Errorf("check the control center: its certificate is of %q, want %s", id.Control, c.cfg.controlID)
			}
			return nil
		},
	})
}

// listTimeout bounds the wait for the beginning of any answer. Messages have
// less; a list of 100,000 rows is made when it is asked for.
const listTimeout = time.Minute

// client returns an HTTP/1.1 client that takes no proxy from the environment
// and follows no redirect.
func (c *caller) client(fresh bool) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialTLSContext: c.dial, DisableCompression: true, DisableKeepAlives: fresh,
			MaxIdleConns: 3 * liveSlots, MaxIdleConnsPerHost: 3 * liveSlots, IdleConnTimeout: 90 * time.Second, ResponseHeaderTimeout: listTimeout, MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

func (c *caller) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := c.channels.Dial(ctx, network, addr)
	if err == nil {
		s, _ := channel.Of(conn)
		s.Peer = nil // only the names are kept
		c.newest.Store(&s)
	}
	return conn, err
}

// channel returns protocol and suite of the connection made last.
func (c *caller) channel() (protocol, suite string) {
	if s := c.newest.Load(); s != nil {
		return s.Protocol, s.Suite
	}
	return "", ""
}

// renew takes the keys of a folder, and the protocol, into use: for messages at
// once, for channels with the next connection. After an error the old ones stay.
func (c *caller) renew(keys *keystore.Store, p profile.Profile) error {
	m, err := c.loadMessageKeys(keys)
	if err == nil {
		err = c.channels.Renew(keys, p.TLCP())
	}
	if err != nil {
		return fmt.Errorf("renew keys of the control link: %w", err)
	}
	c.keys.Store(m)
	c.kept.CloseIdleConnections()
	return nil
}
