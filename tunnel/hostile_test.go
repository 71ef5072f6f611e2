package tunnel

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
)

// An enrolled agent that turns hostile is bounded, ended where it breaks a rule,
// and alerted; the flows of another agent go on as if it were not there.
func TestS22_HostileAgentHarmsNoOther(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{PerDevice: 8})
	good := w.open(w.mustConnect(w.alice, nil), "tcp", w.request(w.alice))
	quiet := trips(t, good, 200)
	heap := used().heap
	for _, attack := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"opens without end", w.floodOfOpens},
		{"never reads", w.neverReads},
		{"opens and lets go", w.openAndReset},
		{"gives no credit", w.noCredit},
	} {
		t.Run(attack.name, func(t *testing.T) {
			done := make(chan struct{})
			go func() { defer close(done); attack.run(t) }()
			var during []time.Duration
			for ended := false; !ended; {
				during = append(during, trips(t, good, 20)...)
				select {
				case <-done:
					ended = true
				default:
				}
			}
			calm, hot := quantileOf(quiet, 99), quantileOf(during, 99)
			t.Logf("p99 of the other agent's round trips: %v, beside the attack %v (%.1f times, of %d)", calm, hot, float64(hot)/float64(calm), len(during))
			if hot > 2*calm+250*time.Millisecond && !raceEnabled {
				t.Errorf("p99 %v beside the attack, %v without", hot, calm)
			}
		})
	}
	if grown := used().heap - heap; grown > 64<<20 {
		t.Errorf("%d MiB of heap after the attacks, of both ends", grown>>20)
	}
	w.echoes(good, "still here")
}

func trips(t *testing.T, f *mux.Flow, n int) []time.Duration {
	t.Helper()
	out, b := make([]time.Duration, n), make([]byte, 64)
	for i := range out {
		began := time.Now()
		if _, err := f.Write(b); err != nil {
			t.Fatalf("the other agent's flow: %v", err)
		}
		if _, err := io.ReadFull(f, b); err != nil {
			t.Fatalf("the other agent's flow: %v", err)
		}
		out[i] = time.Since(began)
	}
	return out
}

func quantileOf(d []time.Duration, percent int) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)*percent/100]
}

// floodOfOpens asks for flow after flow, as fast as it can: the tunnel ends by
// the rate, with an alert, long before a million.
func (w *world) floodOfOpens(t *testing.T) {
	c := w.mustConnect(w.bob, nil)
	m := w.request(w.bob)
	m.AppID, m.AppName = otherApp, "Echo" // not granted: the cheapest answer there is
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 1_000_000 / 32 {
				if _, err := c.Open(context.Background(), "tcp", m); c.Err() != nil {
					return
				} else if err == nil {
					t.Error("an application that is not granted was opened")
				}
			}
		})
	}
	wg.Wait()
	if got := refusal(c.Err()); got != reason.FrameRate {
		t.Errorf("the flood ended by %v", c.Err())
	}
	eventually(t, "an alert of the flood", func() bool {
		a, ok := w.rec.raised(alert.TunnelAbuse)
		return ok && a.Reason == reason.FrameRate && a.DeviceID == w.bob.device
	})
	// Nor does it go on over the next connection.
	if _, err := w.connect(w.bob, nil); refusal(err) != reason.TunnelLimit {
		t.Errorf("another tunnel right after the flood: %v", err)
	}
	w.clock.advance(barFor)
}

// neverReads has the application send on many flows and takes nothing: each
// stands still at its credit, the tunnel lives, and nothing else fills.
func (w *world) neverReads(t *testing.T) {
	c := w.mustConnect(w.bob, nil)
	defer c.Close()
	var flows []*mux.Flow
	for range 48 {
		flows = append(flows, w.open(c, "tcp", w.request(w.bob)))
	}
	var wg sync.WaitGroup
	b := make([]byte, 64<<10)
	for _, f := range flows {
		wg.Go(func() {
			_ = f.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			for {
				if _, err := f.Write(b); err != nil {
					return // the echo is stuck behind us: our own credit has ended
				}
			}
		})
	}
	wg.Wait()
	if err := c.Err(); err != nil {
		t.Errorf("a reader that is slow for ever lost its tunnel: %v", err)
	}
	for _, x := range w.srv.Tunnels() {
		if x.DeviceID == w.bob.device && x.Flows != len(flows) {
			t.Errorf("%d flows, want %d", x.Flows, len(flows))
		}
	}
}

// noCredit opens flows without a window and has the application send: not a byte
// is taken from it, and the flows end with the tunnel.
func (w *world) noCredit(t *testing.T) {
	c, x := w.tapped(w.bob)
	x.mu.Lock()
	x.noCredit = true
	x.mu.Unlock()
	var flows []*mux.Flow
	for range 48 {
		f := w.open(c, "tcp", w.request(w.bob))
		if _, err := f.Write(make([]byte, 8<<10)); err != nil {
			t.Errorf("write: %v", err)
		}
		flows = append(flows, f)
	}
	_ = flows[0].SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := flows[0].Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without credit came %d bytes, %v", n, err)
	}
	if err := c.Err(); err != nil {
		t.Errorf("the tunnel ended: %v", err)
	}
	c.Close()
	eventually(t, "no flow and no lease but the other agent's", func() bool { return w.access.Stats().Leases == 1 })
}

// Each kind of abuse ends the tunnel, and is told with its reason and its device.
func TestS22_EveryAbuseIsAlerted(t *testing.T) {
	many := func(n int, b []byte) []byte {
		var out []byte
		for range n {
			out = append(out, b...)
		}
		return out
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  reason.Reason
	}{
		"a kind that there is not":   {record(8, 0, nil), reason.FrameMalformed},
		"DATA of a flow never seen":  {record(mux.Data, 99, []byte("x")), reason.FrameMalformed},
		"DATA beyond the credit":     {many(400, record(mux.Data, 1, make([]byte, 65528))), reason.BudgetExceeded},
		"WINDOW without end":         {many(1100, record(mux.Window, 1, []byte{0, 0, 0, 1})), reason.FrameRate},
		"PING without end":           {many(80, record(mux.Ping, 0, make([]byte, 8))), reason.FrameRate},
		"a message that is not open": {record(mux.Message, 0, make([]byte, 64)), reason.FrameMalformed},
		"a sealed message of nobody": {record(mux.Message, 0, append([]byte{carrier.Renewal}, make([]byte, 64)...)), reason.MessageSealed},
		"an OPEN without its T12":    {record(mux.Open, 9, make([]byte, 40)), reason.MessageSealed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "127.0.0.1", Limits{})
			c1, x := w.tapped(w.bob)
			w.open(c1, "tcp", w.request(w.bob))
			_, _ = x.Conn.Write(c.bytes) // which the gateway may not take to its end
			<-c1.Done()
			eventually(t, "an alert", func() bool {
				a, ok := w.rec.raised(alert.TunnelAbuse)
				return ok && a.Reason == c.want && a.DeviceID == w.bob.device
			})
			eventually(t, "nothing is left", func() bool { return len(w.srv.Tunnels()) == 0 && w.access.Stats().Leases == 0 })
		})
	}
}

// openAndReset opens granted flows and resets them at once, within the rate:
// nothing of them stays.
func (w *world) openAndReset(t *testing.T) {
	c := w.mustConnect(w.bob, nil)
	defer c.Close()
	for range 400 {
		f, err := c.Open(context.Background(), "tcp", w.request(w.bob))
		var no *carrier.RefusedError
		if errors.As(err, &no) && no.Reason == reason.FlowLimit {
			continue
		}
		if err != nil {
			t.Errorf("open: %v", err)
			return
		}
		f.(*mux.Flow).Reset(reason.ClientGone)
		f.Close()
	}
	eventually(t, "no flow of the hostile agent", func() bool {
		for _, x := range w.srv.Tunnels() {
			if x.DeviceID == w.bob.device && x.Flows > 0 {
				return false
			}
		}
		return true
	})
}
