package guard

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/tunnel/spa"
)

// A QUIC connection that moves to another network sends no Initial there, so
// that no token can ride in it: without a knock the guard drops the new path,
// with one the connection goes on over it (S20, S38).
func TestS20_S38_MovedQUICPathKnocks(t *testing.T) {
	needRoot(t)
	d := newDoor(t, "native")
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		err := d.g.Run(ctx, func(k bpf.Knock) { // what the gateway does with a knock that is genuine
			if k.Alias != d.ticket.Alias {
				t.Errorf("a knock of alias %x", k.Alias)
				return
			}
			if err := d.g.OpenPort(k.Source.Addr().Unmap(), hidden, spa.UDP, k.Alias, spa.OpenFor); err != nil {
				t.Error(err)
			}
		}, func(bpf.Drop) {})
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer stop()

	client := &spa.Dialer{Ways: []spa.Way{spa.Knock}}
	to := addrPort(gw4, hidden)
	q, err := d.a.quicDial(t, client, d.pass, at(gw4, hidden), enough)
	if err != nil {
		t.Fatalf("QUIC with a token: %v; %s", err, d.counters(t))
	}
	quicSays(t, "before the move", q, []byte("here"))
	// move goes over to a socket of its own, as another network's.
	move := func(limit time.Duration) error {
		var pc net.PacketConn
		d.a.in(t, func() {
			udp, err := net.ListenUDP("udp", nil)
			if err != nil {
				t.Error(err)
				return
			}
			pc = client.PacketConn(udp, d.pass)
		})
		if pc == nil {
			return net.ErrClosed
		}
		tr := &quic.Transport{Conn: pc}
		t.Cleanup(func() { tr.Close(); pc.Close() })
		p, err := q.AddPath(tr)
		if err != nil {
			t.Fatal(err)
		}
		probe, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := p.Probe(probe); err != nil {
			_ = p.Close()
			return err
		}
		return p.Switch()
	}
	d.refused(t, "a new path without a knock", bpf.DropUnauthorized, func() error { return move(10 * soon) })
	quicSays(t, "the old path after it", q, []byte("still here"))
	d.a.in(t, func() {
		if err := client.KnockUDP(context.Background(), d.pass, to); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := move(enough); err != nil {
		t.Fatalf("a new path after a knock: %v; %s", err, d.counters(t))
	}
	quicSays(t, "after the move", q, []byte("there"))
	t.Logf("moved after %v", time.Since(began))
}
