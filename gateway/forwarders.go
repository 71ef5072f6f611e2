package gateway

import (
	"fmt"
	"net/netip"

	"github.com/yumen-zt/yumen/proxy"
)

// ForwardersConfig names the load balancers and proxies in front of the gateway
// that say who their client is. The address so learned is what limits, policies,
// the audit and applications see.
type ForwardersConfig struct {
	ProxyProtocol []string `yaml:"proxy_protocol"` // networks whose connections begin with a PROXY header, version 1 or 2; others may send none
	Headers       []string `yaml:"headers"`        // networks whose requests name the client in a field, read from the right
	Field         string   `yaml:"field"`          // X-Forwarded-For (default) or Forwarded: the one that they set
}

func (c *ForwardersConfig) faults(fault func(path, format string, args ...any)) {
	for path, list := range map[string][]string{"proxy_protocol": c.ProxyProtocol, "headers": c.Headers} {
		for i, s := range list {
			if _, err := trusted(s); err != nil {
				fault(fmt.Sprintf("forwarders.%s[%d]", path, i), "%w", err)
			}
		}
	}
	switch c.Field {
	case "", proxy.FieldXForwardedFor, proxy.FieldForwarded:
	default:
		fault("forwarders.field", "%q is neither %s nor %s", c.Field, proxy.FieldXForwardedFor, proxy.FieldForwarded)
	}
}

func (c *ForwardersConfig) same(o *ForwardersConfig) bool {
	return fmt.Sprint(*c) == fmt.Sprint(*o)
}

// trusted is network without the one that holds everybody.
func trusted(s string) (netip.Prefix, error) {
	p, err := network(s)
	if err == nil && p.Bits() == 0 {
		err = fmt.Errorf("%q is everybody: anybody could say who he is", s)
	}
	return p, err
}

// networks reads a list that faults has seen.
func networks(list []string) (out []netip.Prefix) {
	for _, s := range list {
		if p, err := trusted(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}
