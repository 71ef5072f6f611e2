package exchange

import "net/netip"

// Client returns who asks: the connection's client or, behind a trusted
// forwarder, the one that it names for this request. The port may be 0 then.
func (x *Exchange) Client() netip.AddrPort {
	if x.Remote.IsValid() {
		return x.Remote
	}
	return x.Conn.Remote
}

// ClientText returns [Exchange.Client] as text.
func (x *Exchange) ClientText() string {
	switch {
	case !x.Remote.IsValid():
		return x.Conn.RemoteText()
	case x.Remote.Port() == 0:
		return x.Remote.Addr().String()
	}
	return x.Remote.String()
}

// ClientAddress returns the address of [Exchange.Client] as text.
func (x *Exchange) ClientAddress() string {
	if !x.Remote.IsValid() {
		return x.Conn.AddressText()
	}
	return x.Remote.Addr().String()
}
