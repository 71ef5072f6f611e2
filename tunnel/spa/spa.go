// Package spa is single-packet authorization: the permit that rides in the
// first packet to a guarded port, for the agent that shows it and for the
// gateway that checks it.
//
//	token.go   the 20 bytes that the guard checks
//	knock.go   a datagram with a token, for which the gateway opens a port
//	book.go    the gateway's side: tickets that count, knocks, and admission in
//	           user space where no guard runs
//	dial.go    the agent's side over TCP: knock and connect, or
//	syn*.go    connect with the token in the SYN
//	initial.go the agent's side of QUIC: the token behind the Initial
//	gate.go    the gateway's side of QUIC in user space
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
	SYN     bool            // it takes a token in the SYN's payload
	Tickets []permit.Ticket // of the present and the coming time
	Home    []permit.Ticket // long-lived ones, for when no other counts: they knock, seldom
}

// at returns the ticket that counts longest at now, or nil.
func (p *Pass) at(now time.Time) *permit.Ticket { return longest(p.Tickets, now) }

func longest(all []permit.Ticket, now time.Time) (best *permit.Ticket) {
	for i := range all {
		t := &all[i]
		if !now.Before(t.From) && now.Before(t.Until) && (best == nil || t.Until.After(best.Until)) {
			best = t
		}
	}
	return best
}
