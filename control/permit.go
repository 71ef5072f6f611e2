package control

import (
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/wire"
)

// permitKeys reads what a gateway's permits are made of from its report; nil
// when it says nothing of them, as a report that was buffered does not.
func permitKeys(ext map[string]jsontext.Value) *wire.PermitKeys {
	raw, ok := ext[wire.ExtPermit]
	if !ok || len(raw) > 4096 {
		return nil
	}
	p, err := wire.DecodeExtension[wire.PermitKeys](raw)
	if err != nil {
		return nil
	}
	return p
}

// gateways returns those that agents may be sent to.
func (s *Server) gateways() (all []wire.GatewayRef) {
	s.view(func(st *model.State) { all = gatewaysOf(st) })
	return all
}

func gatewaysOf(st *model.State) []wire.GatewayRef {
	all := []wire.GatewayRef{}
	for _, g := range st.Gateways {
		if len(g.Sign) > 0 && st.Locks[model.LockRef{Kind: "device", ID: g.DeviceID}] == nil {
			all = append(all, wire.GatewayRef{ID: g.ID, Addresses: g.Addresses, Sign: g.Sign, Enc: g.Enc})
		}
	}
	slices.SortFunc(all, func(a, b wire.GatewayRef) int { return compareStrings(a.ID, b.ID) })
	return all
}

// permit gives a device its tickets for those of gateways that have a guard.
func (s *Server) permit(gateways []wire.GatewayRef, deviceID string) {
	for i := range gateways {
		g := &gateways[i]
		var keys *wire.PermitKeys
		s.hub.with(g.ID, func(l *link) { keys = l.permits })
		if keys == nil {
			continue
		}
		tickets := func(keys []wire.PermitKey) (all []wire.PermitTicket) {
			for _, k := range keys {
				if s.cfg.Now().Before(k.Until) {
					t := permit.Key(k).Ticket(g.ID, deviceID)
					all = append(all, wire.PermitTicket{Alias: t.Alias[:], Gate: t.Gate[:], Knock: t.Knock[:], From: t.From, Until: t.Until})
				}
			}
			return all
		}
		g.Permit = &wire.Permit{Knock: keys.Knock, SYN: keys.SYN, Tickets: tickets(keys.Keys), Home: tickets(keys.Home)}
	}
}
