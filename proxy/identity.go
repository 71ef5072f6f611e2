package proxy

import (
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// rewrite builds the fields of the upstream's request: what may pass of the
// client's, then what the gateway alone says.
func (p *Proxy) rewrite(x *Exchange) (exchange.Header, error) {
	h := forwardable(x.Header, 12)
	h.Add("X-Forwarded-For", x.Conn.Remote.Addr().Unmap().String())
	h.Add("X-Forwarded-Proto", "https")
	h.Add("X-Forwarded-Host", publicHost(x))
	h.Add("X-Request-Id", x.ID)
	h.Add("Via", viaValue(x, p.via()))
	if !x.Public && x.App.Origin {
		f := &x.Facts
		h.Add("X-Yumen-User", f.UserID)
		h.Add("X-Yumen-Device", f.DeviceID)
		h.Add("X-Yumen-App", x.App.ID)
		h.Add("X-Yumen-Session", f.SessionID)
		h.Add("X-Yumen-Level", strconv.Itoa(f.Level))
		token, err := p.assertion.token(f, x.App.ID)
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
	return x.Host + ":" + x.Port
}

func viaValue(x *Exchange, ours string) string {
	version := "1.1 "
	if x.Carrier == exchange.H2 || x.Conn.ALPN == "h2" {
		version = "2 "
	}
	return strings.Join(append(x.Header.Values("Via"), version+ours), ", ")
}
