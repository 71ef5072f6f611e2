package proxy

import (
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/h3"
)

// rewrite builds the fields of the upstream's request: what may pass of the
// client's, then what the gateway alone says.
// They are appended to h.
func (p *Proxy) rewrite(h exchange.Header, x *Exchange) (exchange.Header, error) {
	h = forwardable(h, x.Header)
	h.Add("X-Forwarded-For", x.ClientAddress())
	h.Add("X-Forwarded-Proto", "https")
	h.Add("X-Forwarded-Host", publicHost(x))
	h.Add("X-Request-Id", x.ID)
	h.Add("Via", p.viaValue(x))
	if !x.Public && x.App.Origin {
		f := &x.Facts
		h.Add("X-Yumen-User", f.UserID)
		h.Add("X-Yumen-Device", f.DeviceID)
		h.Add("X-Yumen-App", x.App.ID)
		h.Add("X-Yumen-Session", f.SessionID)
		h.Add("X-Yumen-Level", strconv.Itoa(f.Level))
		token, err := p.assertion.token(f, x.App.ID, x.Start)
		if err != nil {
			return nil, err
		}
		h.Add("X-Yumen-Assertion", token)
	}
	return h, nil
}

// publicHost is the host as people see it: with its port unless it is the
// usual one.
func publicHost(x *Exchange) string {
	if x.Port == "" || x.Port == "443" {
		return x.Host
	}
	if len(x.Authority) == len(x.Host)+1+len(x.Port) && strings.HasPrefix(x.Authority, x.Host) {
		return x.Authority
	}
	return x.Host + ":" + x.Port
}

func (p *Proxy) viaValue(x *Exchange) string {
	ours := p.via
	switch {
	case x.Carrier == exchange.H2 || x.Conn.ALPN == "h2":
		ours = p.via2
	case x.Conn.ALPN == h3.ALPN:
		ours = p.via3
	}
	if !x.Header.Has("Via") {
		return ours
	}
	return strings.Join(append(x.Header.Values("Via"), ours), ", ")
}
