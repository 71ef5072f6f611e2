package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// protocolTLCP is how status names it.
const protocolTLCP = "tlcp"

// overTLCP speaks TLCP with the gateway's hosts, and TLS with the identity
// provider, as browsers that know both do.
type overTLCP struct {
	tls   http.RoundTripper
	tlcp  *http.Transport
	suite atomic.Uint32 // of the newest connection
}

func (o *overTLCP) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Hostname(), ".localhost") {
		return o.tlcp.RoundTrip(r)
	}
	return o.tls.RoundTrip(r)
}

// CloseIdleConnections gives both protocols' connections back.
func (o *overTLCP) CloseIdleConnections() {
	o.tlcp.CloseIdleConnections()
	if t, ok := o.tls.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// NewTLCPBrowser is [Info.NewBrowser] for a browser that speaks TLCP with the
// gateway.
func (i *Info) NewTLCPBrowser() (*Browser, error) {
	pem, err := os.ReadFile(i.TLCP.CAFile)
	if err != nil {
		return nil, fmt.Errorf("make browser: %w", err)
	}
	roots := smx509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("make browser: %s holds no certificate", i.TLCP.CAFile)
	}
	b, err := i.NewBrowser()
	if err != nil {
		return nil, err
	}
	b.tlcp = &overTLCP{tls: b.http.Transport}
	b.tlcp.tlcp = &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := dialLocal(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		host, _, _ := net.SplitHostPort(addr) // it was dialled
		c := tlcp.Client(raw, &tlcp.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"http/1.1"}})
		if err := c.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		b.tlcp.suite.Store(uint32(c.ConnectionState().CipherSuite))
		return c, nil
	}}
	b.http.Transport = b.tlcp
	return b, nil
}

func (c *checker) webOverTLCP(ctx context.Context) (string, error) {
	b, err := c.NewTLCPBrowser()
	if err != nil {
		return "", err
	}
	defer b.Close()
	status, body, err := b.SignIn(ctx, c.App(Portal).URL+"/whoami", c.User("alice"))
	if err != nil {
		return "", err
	}
	if status != http.StatusOK || !strings.Contains(body, "user "+c.User("alice").ID) {
		return "", fmt.Errorf("after the sign-in: status %d, %.300q", status, body)
	}
	return fmt.Sprintf("%s %s, the application sees %s", protocolTLCP, tlcp.CipherSuiteName(uint16(b.tlcp.suite.Load())), strings.TrimSpace(body)), nil
}

func (c *checker) agentStatus(ctx context.Context) (*agent.Status, error) {
	a := agent.NewClient(c.Agent.Socket)
	defer a.Close()
	return a.Status(ctx)
}

func (c *checker) tunnelOverTLCP(ctx context.Context) (string, error) {
	st, err := c.agentStatus(ctx)
	if err != nil {
		return "", err
	}
	if st.Carrier != protocolTLCP {
		return "", fmt.Errorf("the tunnel runs over %q (%s)", st.Carrier, st.CarrierWhy)
	}
	conn, err := dialSOCKS5(ctx, c.Agent.SOCKS5, c.App(Echo).Address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return fmt.Sprintf("%s %s, echo answered", st.Carrier, st.Suite), echo(conn, "by the gate of jade")
}

func (c *checker) controlOverTLCP(ctx context.Context) (string, error) {
	gw, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	st, err := c.agentStatus(ctx)
	if err != nil {
		return "", err
	}
	if gw.Control == nil {
		return "", errors.New("the gateway has no link to a control center")
	}
	if gw.Control.Protocol != protocolTLCP || st.ControlProtocol != protocolTLCP {
		return "", fmt.Errorf("the gateway's link runs over %q, the agent's over %q", gw.Control.Protocol, st.ControlProtocol)
	}
	return fmt.Sprintf("gateway %s %s, agent %s %s", gw.Control.Protocol, gw.Control.Suite, st.ControlProtocol, st.ControlSuite), nil
}
