package wire

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ExtPermit is the key of header.ext of T4 under which a gateway tells what its
// agents' permits are made of: [PermitKeys].
const ExtPermit = "permit"

// PermitKeys is what a control center makes permits of, for one gateway: the
// keys of the present and the coming time. They are secret and go over the
// gateway's own authenticated channel only.
type PermitKeys struct {
	Knock uint16      `json:"knock"` // UDP port of knocks
	SYN   bool        `json:"syn,omitempty"`
	Keys  []PermitKey `json:"keys"`
	Home  []PermitKey `json:"home,omitempty"` // of long-lived tickets
}

// PermitKey is one of them, as crypto/permit has it.
type PermitKey struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	Key   []byte    `json:"key"`
}

// String hides the key.
func (k PermitKey) String() string { return fmt.Sprintf("key of permits until %s", k.Until) }

const maxPermits = 4 // of one gateway

// Check reports what is wrong with p.
func (p *PermitKeys) Check() error {
	if p.Knock == 0 || len(p.Keys) == 0 || len(p.Keys) > maxPermits || len(p.Home) > maxPermits {
		return fmt.Errorf("check permit keys: knock port %d, %d keys, %d long-lived", p.Knock, len(p.Keys), len(p.Home))
	}
	for _, k := range slices.Concat(p.Keys, p.Home) {
		if len(k.Key) != 32 || !k.From.Before(k.Until) {
			return errors.New("check permit keys: not 32 bytes, or no time")
		}
	}
	return nil
}

// Permit is what an agent shows to a guarded gateway: a field of [GatewayRef].
// It is secret.
type Permit struct {
	Knock   uint16         `json:"knock"`         // UDP port of knocks
	SYN     bool           `json:"syn,omitempty"` // the gateway takes a token in a SYN's payload
	Tickets []PermitTicket `json:"tickets"`
	Home    []PermitTicket `json:"home,omitempty"` // long-lived, for when none of the others counts
}

// String hides the keys.
func (p *Permit) String() string { return fmt.Sprintf("permit with %d tickets", len(p.Tickets)) }

// PermitTicket is one ticket, as crypto/permit has it.
type PermitTicket struct {
	Alias []byte    `json:"alias"`
	Gate  []byte    `json:"gate"`
	Knock []byte    `json:"code"`
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// String hides the keys.
func (t PermitTicket) String() string { return fmt.Sprintf("ticket %x until %s", t.Alias, t.Until) }

// Check reports what is wrong with p.
func (p *Permit) Check() error {
	if p.Knock == 0 || len(p.Tickets) > maxPermits || len(p.Home) > maxPermits {
		return fmt.Errorf("check permit: knock port %d, %d tickets, %d long-lived", p.Knock, len(p.Tickets), len(p.Home))
	}
	for _, t := range slices.Concat(p.Tickets, p.Home) {
		if len(t.Alias) != 8 || t.Alias[0] < 0x80 || len(t.Gate) != 16 || len(t.Knock) != 32 {
			return errors.New("check permit: a ticket's fields have other sizes")
		}
	}
	return nil
}

// HomePermits are an agent's long-lived permits: a field of [EnrolReply], and
// what the agent keeps.
type HomePermits struct {
	Gateways []HomePermit `json:"gateways"`
}

// HomePermit is the permit for one gateway, without its short-lived tickets. It
// is secret.
type HomePermit struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses"` // host:port
	Permit    Permit   `json:"permit"`
}

// String hides the keys.
func (p HomePermit) String() string { return "permit for " + p.ID }

// Home returns what of refs is to be kept.
func Home(refs []GatewayRef) *HomePermits {
	p := &HomePermits{Gateways: []HomePermit{}}
	for _, g := range refs {
		if g.Permit != nil && len(g.Permit.Home) > 0 {
			p.Gateways = append(p.Gateways, HomePermit{ID: g.ID, Addresses: g.Addresses, Permit: Permit{Knock: g.Permit.Knock, Tickets: []PermitTicket{}, Home: g.Permit.Home}})
		}
	}
	return p
}

// Check reports what is wrong with p.
func (p *HomePermits) Check() error {
	for i := range p.Gateways {
		if err := p.Gateways[i].Permit.Check(); err != nil {
			return err
		}
	}
	return nil
}
