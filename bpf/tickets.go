package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func aliasKey(a [8]byte) uint64 { return binary.LittleEndian.Uint64(a[:]) }

func aliasOf(k uint64) (a [8]byte) {
	binary.LittleEndian.PutUint64(a[:], k)
	return a
}

// AddTicket lets t count. A ticket that is there keeps its replay window.
func (g *Guard) AddTicket(t Ticket) error {
	if t.Alias[0] < 0x80 {
		return errors.New("add ticket: the first bit of its alias is not set")
	}
	v := guardTicket{
		Key:   [2]uint64{binary.LittleEndian.Uint64(t.Key[:]), binary.LittleEndian.Uint64(t.Key[8:])},
		Until: uint64(t.Until), Port: t.Port, Protocol: t.Protocol, Knock: bit(t.Knock),
	}
	if t.Used > 0 {
		v.Window = uint64(t.Used)<<32 | 1<<32 - 1
	}
	g.ports.or(int(t.Port>>6), 1<<(t.Port&63))
	err := g.maps[guardMapTickets].Update(aliasKey(t.Alias), &v, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("add ticket: %w (raise guard.sizes.tickets)", err)
	}
	return nil
}

// RemoveTicket ends a ticket. What it opened closes with it, at once.
func (g *Guard) RemoveTicket(alias [8]byte) error {
	err := g.maps[guardMapTickets].Delete(aliasKey(alias))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove ticket: %w", err)
	}
	g.recheck()
	return nil
}

// Tickets calls f for each ticket that is there.
func (g *Guard) Tickets(f func(alias [8]byte, until time.Duration)) error {
	var k uint64
	var v guardTicket
	it := g.maps[guardMapTickets].Iterate()
	for it.Next(&k, &v) {
		f(aliasOf(k), time.Duration(v.Until))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read tickets: %w", err)
	}
	return nil
}

// OpenPort lets the next connection, or the next flow, of source to port in,
// one only, for d: what a knock opens. The ticket must still be there when it
// comes.
func (g *Guard) OpenPort(source netip.Addr, port uint16, protocol uint8, alias [8]byte, d time.Duration) error {
	v := guardOpening{Until: uint64(Now() + d), Alias: aliasKey(alias)}
	v.Whom.Source.W, v.Whom.Port, v.Whom.Protocol = words(source), swap(port), protocol
	g.ports.or(int(port>>6), 1<<(port&63)) // before there is something to find
	if protocol == unix.IPPROTO_UDP {
		g.ports.or(knockedWords+int(port>>6), 1<<(port&63))
	}
	if err := g.maps[guardMapOpenings].Put(openingKey(g.seed(), &v), &v); err != nil {
		return fmt.Errorf("open port %d for %s: %w", port, source, err)
	}
	g.makeKnown(v.Whom.Source.W)
	return nil
}
