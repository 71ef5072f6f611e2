package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/tunnel/spa"
)

// outside is a network namespace that stands for the world of strangers, and
// the guarded interface towards it. The machine's own interfaces are left
// alone.
type outside struct {
	iface   string
	address netip.Addr // of the gateway's end
	knock   int        // UDP port
	pins    string
	ns      namespace
}

// GuardReport is what the demo saw from outside.
type GuardReport struct {
	Off      string        `json:"off,omitzero"` // why there is no guard
	Mode     string        `json:"mode,omitzero"`
	Address  string        `json:"address,omitzero"` // that is guarded
	Knocked  time.Duration `json:"knocked,omitzero"` // from the knock to the end of a handshake
	Dropped  uint64        `json:"dropped,omitzero"`
	Closed   string        `json:"closed,omitzero"`   // a stranger got an answer
	Unopened string        `json:"unopened,omitzero"` // a permit did not open
}

// guarded writes a configuration that listens in front of the guard, too, and
// returns its path.
func (o *outside) guarded(i *Info) (string, error) {
	raw, err := os.ReadFile(i.Gateway.Config)
	if err != nil {
		return "", err
	}
	was := fmt.Sprintf("listen: [%q]", i.Gateway.Address)
	if !strings.Contains(string(raw), was) {
		return "", fmt.Errorf("%s does not listen on %s alone", i.Gateway.Config, i.Gateway.Address)
	}
	text := strings.Replace(string(raw), was, fmt.Sprintf("listen: [%q, %q]", i.Gateway.Address, o.at(i)), 1)
	text += fmt.Sprintf("guard: {interface: %s, required: true, knock_port: %d, management: [127.0.0.0/8, \"::1\"], pin_dir: %s}\n", o.iface, o.knock, o.pins)
	path := filepath.Join(filepath.Dir(i.Gateway.Config), "gateway-guarded.yaml")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func (o *outside) at(i *Info) string {
	return netip.AddrPortFrom(o.address, uint16(i.Gateway.Port)).String()
}

// pass makes the permit that the agent's device has.
func (o *outside) pass(i *Info) (*spa.Pass, error) {
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(i.Gateway.Config), "state", "permit.key"))
	if err != nil {
		return nil, err
	}
	if len(raw) != len(permit.Root{}) {
		return nil, errors.New("read permit.key: it is no key")
	}
	t := permit.Root(raw).Times(time.Now(), time.Hour)[0].Ticket(i.Gateway.ID, i.Agent.DeviceID)
	return &spa.Pass{Port: uint16(o.knock), Tickets: []permit.Ticket{t}}, nil
}

// silence is how long a stranger waits for an answer.
const silence = 300 * time.Millisecond

// look tries the gateway from outside: as a stranger, with the agent's permit,
// and as a stranger again.
func (o *outside) look(ctx context.Context, i *Info) (r GuardReport, err error) {
	r.Address = o.at(i)
	pass, err := o.pass(i)
	if err != nil {
		return r, err
	}
	ca, err := os.ReadFile(i.CAFile)
	if err != nil {
		return r, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	stranger := func(what string) {
		c, err := (&net.Dialer{Timeout: silence}).DialContext(ctx, "tcp", r.Address)
		var ne net.Error
		switch {
		case err == nil:
			c.Close()
			r.Closed = what + " reached the port"
		case !errors.As(err, &ne) || !ne.Timeout():
			r.Closed = what + " got an answer: " + err.Error()
		}
	}
	err = o.ns.do(func() error {
		stranger("a stranger")
		start := time.Now()
		c, _, err := (&spa.Dialer{}).Dial(ctx, pass, r.Address)
		if err == nil {
			t := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "portal.localhost"})
			err = t.HandshakeContext(ctx)
			c.Close()
		}
		if r.Knocked = time.Since(start); err != nil {
			r.Unopened = err.Error()
		}
		stranger("a stranger beside an agent")
		return nil
	})
	if err != nil {
		return r, err
	}
	var s gateway.GuardStatus
	if err := adminsock.NewClient(i.Gateway.Socket).Do(ctx, http.MethodGet, "/guard", nil, &s); err != nil {
		return r, err
	}
	r.Mode = string(s.Mode)
	for _, n := range s.Dropped {
		r.Dropped += n
	}
	return r, nil
}

// guarded is the step of the story.
func (c *checker) guarded(ctx context.Context) (string, error) {
	var r GuardReport
	if err := c.demo.Do(ctx, http.MethodGet, "/guard", nil, &r); err != nil {
		return "", err
	}
	switch {
	case r.Off != "":
		return "off 未开启: " + r.Off, nil
	case r.Closed != "":
		return "", errors.New(r.Closed)
	case r.Unopened != "":
		return "", fmt.Errorf("the agent's permit opens nothing: %s", r.Unopened)
	}
	return fmt.Sprintf("%s: a stranger gets no answer, the agent's permit opens it within %s (%s, %d packets dropped)",
		r.Address, r.Knocked.Round(time.Millisecond), r.Mode, r.Dropped), nil
}
