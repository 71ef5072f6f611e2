package carrier

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/internal/sock"
)

// How soon a move to another network is noticed, and how long the new path may
// take to prove itself.
const (
	moveCheck = 250 * time.Millisecond
	moveProbe = 3 * time.Second
)

// mover takes an agent's connection along when the device moves to another
// network (RFC 9000 §9): it asks the system again and again from which address
// the gateway is reached, and moves to a socket of its own there. It owns the
// sockets of the connection.
type mover struct {
	q      *quic.Conn
	to     *net.UDPAddr
	open   func(context.Context, *net.UDPAddr) (net.PacketConn, bool, error)
	source func(*net.UDPAddr) (netip.Addr, bool)
	done   sync.WaitGroup

	// Of its goroutine, and of end after that.
	from netip.Addr
	used []path
}

type path struct {
	tr *quic.Transport
	pc net.PacketConn
}

func (m *mover) start() {
	if m.source == nil {
		m.source = sourceFor
	}
	m.from, _ = m.source(m.to)
	m.done.Go(m.run)
}

// end waits for the end of the connection, and closes its sockets.
func (m *mover) end() {
	m.done.Wait()
	for _, p := range m.used {
		_ = p.tr.Close()
		_ = p.pc.Close()
	}
}

func (m *mover) run() {
	ctx := m.q.Context()
	tick := time.NewTicker(moveCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if from, ok := m.source(m.to); ok && from != m.from && m.move(ctx) {
			m.from = from
		}
	}
}

// move opens a socket, proves the path from there and goes over. It reports
// false when that failed: it is tried again.
func (m *mover) move(ctx context.Context) bool {
	pc, _, err := m.open(ctx, m.to)
	if err != nil {
		return false
	}
	tr := &quic.Transport{Conn: sock.Lossy(pc, nil)}
	p, err := m.q.AddPath(tr)
	if err == nil {
		probe, cancel := context.WithTimeout(ctx, moveProbe)
		err = p.Probe(probe)
		cancel()
		if err == nil {
			err = p.Switch()
		}
		if err != nil {
			_ = p.Close()
		}
	}
	if err != nil {
		_ = tr.Close()
		_ = pc.Close()
		return false
	}
	m.used = append(m.used, path{tr, pc})
	return true
}

// sourceFor returns the address from which the system reaches to now. Nothing is
// sent.
func sourceFor(to *net.UDPAddr) (netip.Addr, bool) {
	c, err := net.DialUDP("udp", nil, to)
	if err != nil {
		return netip.Addr{}, false // no way there at all
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), true
}
