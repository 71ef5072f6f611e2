package testbed

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// Tunnel opens a tunnel to the gateway with the keys of an agent and says a
// hello that claims what it is told to.
func (l *Lone) Tunnel(ctx context.Context, keys *keystore.Store, sender string, claim wire.TunnelHello) (*carrier.Client, error) {
	channels, err := channel.New(channel.Config{Keys: keys, ALPN: []string{carrier.ALPN}, Peer: func(id certid.Identity) error {
		if id.Gateway != LoneGateway {
			return fmt.Errorf("the gateway is %q", id.Name())
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	key, err := keys.Signer(keystore.Sign)
	if err != nil {
		return nil, err
	}
	chain, err := keys.Chain(keystore.Sign)
	if err != nil {
		return nil, err
	}
	to, err := l.Keys.Chain(keystore.Enc)
	if err != nil {
		return nil, err
	}
	d := carrier.TCP{Channel: channels}
	conn, err := d.Dial(ctx, Loopback(false, l.Port))
	if err != nil {
		return nil, err
	}
	s := envelope.Sender{ID: sender, Key: key, Cert: chain[0]}
	return carrier.Connect(ctx, conn, carrier.ClientConfig{Identity: claim, Hello: func(h wire.TunnelHello) ([]byte, error) {
		body, err := wire.EncodeExtension(h)
		if err != nil {
			return nil, err
		}
		return s.Seal(envelope.Header{MsgType: wire.TypeHello, Receiver: LoneGateway, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)}}, body, to[0])
	}})
}

// AgentKeys makes the keys of an agent on a device.
func (l *Lone) AgentKeys(agent, device string) *keystore.Store {
	l.o.Helper()
	return l.Party(certid.Identity{Agent: agent, Device: device})
}
