// Package spa is single-packet authorization: the permit that rides in the
// first packet to a guarded port, for the agent that shows it and for the
// gateway that checks it.
//
//	token.go   the 20 bytes that the guard checks
//	knock.go   a datagram with a token, for which the gateway opens a port
//	book.go    the gateway's side: tickets that count, knocks, and admission in
//	           user space where no guard runs
//	dial.go    the agent's side: knock, then connect
//
// A token keeps scanners and floods out. It authenticates nobody: mutual TLS or
// TLCP behind it does.
package spa

import (
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
)

// Pass is what an agent has for one gateway.
type Pass struct {
	Port    uint16          // of knocks, UDP
	Tickets []permit.Ticket // of the present and the coming time
}

// at returns the ticket that counts longest at now, or nil.
func (p *Pass) at(now time.Time) (best *permit.Ticket) {
	for i := range p.Tickets {
		t := &p.Tickets[i]
		if !now.Before(t.From) && now.Before(t.Until) && (best == nil || t.Until.After(best.Until)) {
			best = t
		}
	}
	return best
}
