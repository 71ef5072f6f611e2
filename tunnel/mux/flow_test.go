package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

func TestFlowCarriesBytesAndHalfCloses(t *testing.T) {
	p := memPair(t, Config{})
	a, g := p.open(t, false)
	if _, err := a.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, g); got != "question" {
		t.Errorf("got %q", got)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	// The other direction lives on.
	if _, err := g.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, a); got != "answer" {
		t.Errorf("got %q", got)
	}
	a.Close()
	if s := p.agent.Stats(); s.Flows != 0 || s.Credit != 0 {
		t.Errorf("agent after close: %+v", s)
	}
	if s := p.gateway.Stats(); s.Flows != 0 || s.Credit != 0 {
		t.Errorf("gateway after close: %+v", s)
	}
	if a.Reason() != reason.OK || g.Reason() != reason.OK {
		t.Errorf("reasons %v, %v", a.Reason(), g.Reason())
	}
}

func TestFlowMovesMuchIntact(t *testing.T) {
	p := tcpPair(t, Config{})
	const size = 8<<20 + 12345
	src := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(src)
	want := sha256.Sum256(src)
	for name, send := range map[string]func(f *Flow) error{
		"Write": func(f *Flow) error { _, err := f.Write(src); return err },
		"ReadFrom": func(f *Flow) error {
			n, err := f.ReadFrom(bytes.NewReader(src))
			if err == nil && n != size {
				err = io.ErrShortWrite
			}
			return err
		},
		"odd pieces": func(f *Flow) error {
			for b := src; len(b) > 0; {
				n := min(len(b), 1+rand.IntN(100_000))
				if _, err := f.Write(b[:n]); err != nil {
					return err
				}
				b = b[n:]
			}
			return nil
		},
	} {
		for how, receive := range map[string]func(w io.Writer, f *Flow) error{
			"WriteTo": func(w io.Writer, f *Flow) error { _, err := f.WriteTo(w); return err },
			"Read": func(w io.Writer, f *Flow) error {
				b := make([]byte, 777)
				for {
					n, err := f.Read(b)
					w.Write(b[:n])
					if err == io.EOF {
						return nil
					}
					if err != nil {
						return err
					}
				}
			},
		} {
			t.Run(name+" to "+how, func(t *testing.T) {
				a, g := p.open(t, false)
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := send(a); err != nil {
						t.Error(err)
					}
					a.CloseWrite()
				})
				h := sha256.New()
				if err := receive(h, g); err != nil {
					t.Error(err)
				}
				wg.Wait()
				if [32]byte(h.Sum(nil)) != want {
					t.Error("the bytes differ")
				}
				if a.BytesOut() != size || g.BytesIn() != size {
					t.Errorf("counted %d out, %d in, want %d", a.BytesOut(), g.BytesIn(), size)
				}
				a.Close()
				g.Close()
			})
		}
	}
}

func TestResetReachesTheOtherEndWithItsReason(t *testing.T) {
	for _, r := range []reason.Reason{reason.GrantRevoked, reason.RenewalMissed, reason.Reason(999)} {
		p := memPair(t, Config{})
		a, g := p.open(t, false)
		seen := make(chan struct{})
		a.OnReset(func() { close(seen) })
		if !g.Reset(r) || g.Reset(reason.Locked) {
			t.Error("a flow is reset once")
		}
		<-seen
		var re *ResetError
		if _, err := a.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != r || !re.Remote {
			t.Errorf("agent's read: %v", err)
		}
		if _, err := a.Write([]byte("x")); !errors.As(err, &re) || re.Reason != r {
			t.Errorf("agent's write: %v", err)
		}
		if _, err := g.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != r || re.Remote {
			t.Errorf("gateway's read: %v", err)
		}
		a.Close()
		g.Close()
		if p.gateway.Err() != nil || p.agent.Err() != nil {
			t.Error("the tunnel ended with the flow")
		}
		p.close()
	}
}

func TestResetFreesBlockedReadersAndWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := memPair(t, Config{})
		a, g := p.open(t, false)
		errs := make(chan error, 2)
		go func() { _, err := a.Write(make([]byte, 4<<20)); errs <- err }() // beyond the credit
		go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
		synctest.Wait()
		g.Reset(reason.Locked)
		var re *ResetError
		for range 2 {
			if err := <-errs; !errors.As(err, &re) || re.Reason != reason.Locked {
				t.Errorf("got %v", err)
			}
		}
		a.Close()
		g.Close()
		p.close()
	})
}

func TestRefusalCarriesReasonAndPayload(t *testing.T) {
	p := memPair(t, Config{})
	p.gh.full = true
	f, err := p.agent.Start(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Wait(t.Context())
	var re *RefusedError
	if !errors.As(err, &re) || re.Reason != reason.AppNotGranted || string(re.Payload) != "no" {
		t.Fatalf("got %v", err)
	}
	if n := p.agent.Stats().Flows; n != 0 {
		t.Errorf("%d flows left", n)
	}
	if n := p.gateway.Stats().Flows; n != 0 {
		t.Errorf("%d flows left at the gateway", n)
	}
}

func TestAgentGivesUpAnOpen(t *testing.T) {
	p := memPair(t, Config{})
	p.gh.hold = true
	f, err := p.agent.Start(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := <-p.gh.flows
	gone := make(chan struct{})
	g.OnReset(func() { close(gone) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-gone
	if err := g.Accept(nil); err == nil {
		t.Error("a flow that was given up can be accepted")
	}
	g.Close()
	if n := p.gateway.Stats().Flows; n != 0 {
		t.Errorf("%d flows left", n)
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := memPair(t, Config{})
		a, g := p.open(t, false)
		a.SetReadDeadline(time.Now().Add(time.Second))
		begin := time.Now()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("read returned after %v", d)
		}
		a.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := a.Write(make([]byte, 4<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n > 1<<20 || n < 960<<10 {
			t.Errorf("write: %d, %v; want the credit, but for what is less than a record", n, err)
		}
		a.SetDeadline(time.Time{})
		go g.Write([]byte("x"))
		if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("read after the deadline was taken away: %d, %v", n, err)
		}
		a.Close()
		g.Close()
		p.close()
	})
}

func TestCloseTellsTheOtherEnd(t *testing.T) {
	p := memPair(t, Config{})
	a, g := p.open(t, false)
	if _, err := g.Write([]byte("tail")); err != nil {
		t.Fatal(err)
	}
	g.Close()
	if got := readAll(t, a); got != "tail" {
		t.Errorf("got %q: Close must not lose what was written", got)
	}
	// What we still send is answered by a reset, not by silence.
	var err error
	for err == nil {
		_, err = a.Write([]byte("more"))
	}
	var re *ResetError
	if !errors.As(err, &re) || re.Reason != reason.ClientGone {
		t.Errorf("got %v", err)
	}
	a.Close()
}

func TestDatagramsKeepTheirBounds(t *testing.T) {
	p := memPair(t, Config{})
	a, g := p.open(t, true)
	for _, n := range []int{0, 1, 1500, 9000, MaxDatagram} {
		want := bytes.Repeat([]byte{byte(n)}, n)
		if k, err := a.Write(want); err != nil || k != n {
			t.Fatalf("write %d: %d, %v", n, k, err)
		}
		b := make([]byte, MaxRecord)
		k, err := g.Read(b)
		if err != nil || !bytes.Equal(b[:k], want) {
			t.Fatalf("datagram of %d: got %d bytes, %v", n, k, err)
		}
	}
	if _, err := a.Write(make([]byte, MaxDatagram+1)); err == nil {
		t.Error("a datagram beyond the most was taken")
	}
	a.Close()
	if _, err := g.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	g.Close()
}

func TestDatagramQueueDropsAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := memPair(t, Config{})
		a, g := p.open(t, true)
		for range 200 {
			if _, err := a.Write([]byte("flood")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		const kept = (128 << 10) / smallChunk
		if g.Dropped() != 200-kept || p.gateway.Stats().Dropped != 200-kept {
			t.Errorf("dropped %d, want %d", g.Dropped(), 200-kept)
		}
		for range kept {
			if _, err := g.Read(make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		g.Close()
		p.close()
	})
}

// On a long path a flow's window grows while its consumer keeps up, within the
// budget; on a short one it does not.
func TestWindowGrowsOnALongPath(t *testing.T) {
	for _, c := range []struct {
		trip time.Duration
		grew bool
	}{{0, false}, {50 * time.Millisecond, true}} {
		synctest.Test(t, func(t *testing.T) {
			p := memPair(t, Config{RoundTrip: func(net.Conn) time.Duration { return c.trip }})
			a, g := p.open(t, false)
			const much = 16 << 20
			go func() { _, _ = a.Write(make([]byte, much)) }()
			if n, err := io.CopyN(io.Discard, g, much); err != nil {
				t.Fatal(n, err)
			}
			g.mu.Lock()
			window := g.window
			g.mu.Unlock()
			if grew := window > 1<<20; grew != c.grew || window > 4<<20 {
				t.Errorf("window of %d bytes on a path of %v", window, c.trip)
			}
			if s := p.gateway.Stats(); s.Credit > 16<<20 {
				t.Errorf("%d bytes of credit beyond the budget", s.Credit)
			}
			a.Close()
			g.Close()
			if s := p.gateway.Stats(); s.Credit != 0 {
				t.Errorf("%d bytes of credit after the flow", s.Credit)
			}
			p.close()
		})
	}
}
