package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

func TestSlowFlowStallsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := memPair(t, Config{})
		var slow []*Flow
		var wg sync.WaitGroup
		for range 200 { // nobody reads these at the gateway
			a, g := p.open(t, false)
			slow = append(slow, a, g)
			wg.Go(func() { a.Write(make([]byte, 1<<20)) })
		}
		synctest.Wait()
		a, g := p.open(t, false)
		wg.Go(func() {
			if _, err := a.Write(make([]byte, 4<<20)); err != nil {
				t.Error(err)
			}
			a.CloseWrite()
		})
		begin := time.Now()
		n, err := g.WriteTo(io.Discard)
		if n != 4<<20 || err != nil || time.Since(begin) != 0 {
			t.Errorf("moved %d in %v: %v", n, time.Since(begin), err)
		}
		if c := p.gateway.Stats().Credit; c > 16<<20 {
			t.Errorf("%d bytes of credit, beyond the budget", c)
		}
		for _, f := range append(slow, a, g) {
			f.Reset(reason.ClientGone)
			f.Close()
		}
		wg.Wait()
		p.close()
		if s := p.gateway.Stats(); s.Flows != 0 || s.Credit != 0 {
			t.Errorf("left %+v", s)
		}
	})
}

func TestControlGoesAheadOfData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		h := newAcceptor()
		s := Client(a, Config{Handler: h, Window: 1 << 20})
		done := make(chan error, 1)
		go func() { done <- s.Run(context.Background()) }()
		start := func(id int) *Flow {
			go func() {
				io.ReadFull(b, make([]byte, HeaderSize+4))
				b.Write(appendRecord(nil, Open, 0, uint32(id), u32(1<<20), u16(0)))
			}()
			f, err := s.Start(false, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
			return f
		}
		f, g := start(1), start(2)
		go f.Write(make([]byte, 2*MaxPayload)) // has the pen, and will have more
		go g.Write(make([]byte, MaxPayload))   // waits
		synctest.Wait()
		s.Send([]byte("urgent"))
		var order []string
		for range 4 {
			var hd [HeaderSize]byte
			io.ReadFull(b, hd[:])
			h, _ := ParseHeader(&hd, true)
			io.CopyN(io.Discard, b, int64(h.Length))
			order = append(order, fmt.Sprintf("%v %d", h.Kind, h.Flow))
		}
		if order[1] != "MESSAGE 0" {
			t.Errorf("order %v: the message waits behind data", order)
		}
		// Two flows take turns: neither has two records before the other has one.
		d := append(order[:1:1], order[2:]...)
		if d[0] == d[1] {
			t.Errorf("order %v: no turns", order)
		}
		b.Close()
		<-done
		f.Close()
		g.Close()
	})
}

func TestFlowsShareFairly(t *testing.T) {
	p := tcpPair(t, Config{})
	const flows = 8
	var got [flows]atomic.Int64
	var total atomic.Int64
	enough := make(chan struct{})
	var wg sync.WaitGroup
	var all []*Flow
	for i := range flows {
		a, g := p.open(t, false)
		all = append(all, a, g)
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for {
				if _, err := a.Write(b); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			b := make([]byte, 32<<10)
			for {
				n, err := g.Read(b)
				if err != nil {
					return
				}
				got[i].Add(int64(n))
				if before := total.Add(int64(n)) - int64(n); before < 64<<20 && before+int64(n) >= 64<<20 {
					close(enough)
				}
			}
		})
	}
	<-enough
	least, most := got[0].Load(), got[0].Load()
	for i := range got {
		least, most = min(least, got[i].Load()), max(most, got[i].Load())
	}
	for _, f := range all {
		f.Reset(reason.ClientGone) // wakes both ends
	}
	wg.Wait()
	// The turns themselves are exact (above); here the scheduler has its say, too.
	if least*4 < most {
		t.Errorf("least %d, most %d bytes", least, most)
	}
}

func TestFlowCap(t *testing.T) {
	p := tcpPair(t, Config{MaxFlows: 10})
	p.agent.cfg.MaxFlows = 20
	var all []*Flow
	for range 10 {
		a, g := p.open(t, false)
		all = append(all, a, g)
	}
	f, err := p.agent.Start(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var re *RefusedError
	if _, err := f.Wait(t.Context()); !errors.As(err, &re) || re.Reason != reason.FlowLimit {
		t.Errorf("the eleventh flow: %v", err)
	}
	for _, f := range all {
		f.Close()
	}
	a, g := p.open(t, false)
	a.Close()
	g.Close()
}

func TestThousandFlows(t *testing.T) {
	p := tcpPair(t, Config{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 1000 {
			g := <-p.gh.flows
			wg.Go(func() { // echo
				g.WriteTo(g)
				g.Close()
			})
		}
	})
	for i := range 1000 {
		wg.Go(func() {
			f, err := p.agent.Start(false, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := f.Wait(context.Background()); err != nil {
				t.Error(err)
				return
			}
			want := fmt.Sprintf("flow %d", i)
			f.Write([]byte(want))
			f.CloseWrite()
			if got := readAll(t, f); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			f.Close()
		})
	}
	wg.Wait()
	if s := p.gateway.Stats(); s.Flows != 0 || s.Credit != 0 {
		t.Errorf("left %+v", s)
	}
}
