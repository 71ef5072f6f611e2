package ctlclient

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// lossy is a push stream with a memory, as a control center's, whose events get
// lost on the way.
type lossy struct {
	mu     sync.Mutex
	events []string                   // guarded by mu; the text of revision i+1, without its end
	lose   func(rev, stream int) bool // guarded by mu
	spoil  func(rev, stream int) bool // guarded by mu; nil: nothing is
	opened []string                   // guarded by mu; Last-Event-ID of each stream
}

func (l *lossy) add(line []byte) {
	l.mu.Lock()
	l.events = append(l.events, fmt.Sprintf("event: delta\ndata: %s\n", line))
	l.mu.Unlock()
}

// serve is a fault of [center].
func (l *lossy) serve(rw http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != "/ztna/v1/gateway/events" {
		return false
	}
	last := r.Header.Get("Last-Event-ID")
	at, _ := strconv.Atoi(last)
	l.mu.Lock()
	if last == "" {
		at = len(l.events)
	}
	l.opened = append(l.opened, last)
	stream := len(l.opened)
	l.mu.Unlock()
	rw.Header().Set("Content-Type", "text/event-stream")
	rw.Header().Set(wire.HeartbeatHeader, "500")
	rw.WriteHeader(http.StatusOK)
	beat := time.NewTicker(500 * time.Millisecond)
	defer beat.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	seq := 0
	if last == "" { // where it begins
		seq++
		fmt.Fprintf(rw, "event: changed\ndata: {\"list\":\"grants\",\"version\":\"1\"}\nseq: 1\nid: %d\n\n", at)
	}
	for {
		text := ""
		l.mu.Lock()
		for ; at < len(l.events); at++ {
			seq++
			if l.lose(at+1, stream) {
				continue
			}
			event := l.events[at]
			if l.spoil != nil && l.spoil(at+1, stream) {
				event = strings.Replace(event, `"signature":"M`, `"signature":"A`, 1)
			}
			text += fmt.Sprintf("%sseq: %d\nid: %d\n\n", event, seq, at+1)
		}
		l.mu.Unlock()
		if text != "" {
			if _, err := io.WriteString(rw, text); err != nil {
				return true
			}
			_ = http.NewResponseController(rw).Flush()
		}
		select {
		case <-r.Context().Done():
			return true
		case <-beat.C:
			fmt.Fprintf(rw, ": beat\nseq: %d\n\n", seq)
			_ = http.NewResponseController(rw).Flush()
		case <-look.C:
		}
	}
}

// revocations notes when each session was revoked at the handler.
func revocations(e *enforcer, seen map[string]time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.deltas {
		for _, r := range d.Revoke {
			if _, ok := seen[r.SessionID]; !ok {
				seen[r.SessionID] = time.Now()
			}
		}
	}
}

// A revocation is on no list. One that gets lost on a stream that lives on must
// come again at once: whether a later delta shows it, or nothing follows, or a
// pull has already brought the version that it made.
func TestS4_ARevocationLostOnALiveStreamIsSentAgain(t *testing.T) {
	for name, after := range map[string]func(w *world, l *lossy, g *Gateway, c *center){
		"nothing follows": func(*world, *lossy, *Gateway, *center) {},
		"a delta follows": func(w *world, l *lossy, _ *Gateway, c *center) {
			c.setLists(3, w.grants(3, grantRow(1)), 1, c.policies)
			l.add(w.delta(wire.Delta{From: 2, To: 3, Remove: pairs(2)}))
		},
		"the list is pulled, a delta follows": func(w *world, l *lossy, g *Gateway, c *center) {
			g.Sync()
			time.Sleep(100 * time.Millisecond)
			c.setLists(3, w.grants(3, grantRow(1)), 1, c.policies)
			l.add(w.delta(wire.Delta{From: 2, To: 3, Remove: pairs(2)}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
				l := &lossy{lose: func(rev, stream int) bool { return rev == 2 && stream == 1 }}
				c.setFault(l.serve)
				g := newGateway(t, cfg)
				defer run(t, g.Run)()
				time.Sleep(35 * time.Second)
				l.add(w.delta(wire.Delta{From: 1, To: 1, Revoke: []wire.Revocation{{SessionID: "before"}}}))
				time.Sleep(time.Second)
				lost := time.Now()
				c.setLists(2, w.grants(2, grantRow(1), grantRow(2)), 1, c.policies)
				l.add(w.delta(wire.Delta{From: 1, To: 2, Revoke: []wire.Revocation{{SessionID: "lost"}}}))
				after(w, l, g, c)
				seen := map[string]time.Time{}
				for seen["lost"].IsZero() && time.Since(lost) < time.Minute {
					time.Sleep(10 * time.Millisecond)
					revocations(e, seen)
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				if took := seen["lost"].Sub(lost); took > 2*time.Second || seen["lost"].IsZero() {
					t.Errorf("the revocation took %v, want at most 2s; streams %q", took, l.opened)
				} else {
					t.Logf("%s: the revocation took %v", name, took)
				}
				if fmt.Sprintf("%q", l.opened) != `["" "1"]` {
					t.Errorf("streams opened with Last-Event-ID %q, want none and then 1", l.opened)
				}
				if s := g.Status(); s.Sessions != 1 || s.Refused != 0 {
					t.Errorf("%d sessions, %d refused: %s", s.Sessions, s.Refused, s.LastRefusal)
				}
			})
		})
	}
}

// A third of all events get lost, on every stream: each revocation arrives.
func TestS4_NoRevocationIsLostOnALossyStream(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		r := rand.New(rand.NewPCG(11, 4))
		lost := 0
		l := &lossy{lose: func(int, int) bool {
			if r.IntN(3) > 0 {
				return false
			}
			lost++
			return true
		}}
		c.setFault(l.serve)
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		const changes = 100
		began, seen := map[string]time.Time{}, map[string]time.Time{}
		for n := range changes {
			id := fmt.Sprint("session-", n)
			began[id] = time.Now()
			l.add(w.delta(wire.Delta{From: 1, To: 1, Revoke: []wire.Revocation{{SessionID: id}}}))
			for range 20 {
				time.Sleep(100 * time.Millisecond)
				revocations(e, seen)
			}
		}
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			revocations(e, seen)
		}
		var worst time.Duration
		for id := range began {
			if seen[id].IsZero() {
				t.Errorf("%s was never revoked", id)
				continue
			}
			worst = max(worst, seen[id].Sub(began[id]))
		}
		t.Logf("%d revocations, %d events lost, %d streams: worst %v", changes, lost, len(l.opened), worst)
		if lost < changes/5 {
			t.Errorf("only %d events were lost", lost)
		}
	})
}

// A delta that was spoiled on the way does not count as seen: its revocation,
// which is on no list, is asked for again. One that is refused twice is passed
// over, so that what is behind it arrives.
func TestS4_ARefusedDeltaIsAskedForAgain(t *testing.T) {
	for name, spoiled := range map[string]int{"once": 1, "for ever": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
				var asked atomic.Int64
				l := &lossy{lose: func(int, int) bool { return false }}
				l.spoil = func(rev, _ int) bool { return rev == 2 && asked.Add(1) <= int64(spoiled) }
				c.setFault(l.serve)
				g := newGateway(t, cfg)
				defer run(t, g.Run)()
				time.Sleep(35 * time.Second)
				for _, id := range []string{"before", "spoiled", "after"} {
					l.add(w.delta(wire.Delta{From: 1, To: 1, Revoke: []wire.Revocation{{SessionID: id}}}))
				}
				time.Sleep(20 * time.Second)
				seen := map[string]time.Time{}
				revocations(e, seen)
				if seen["before"].IsZero() || seen["after"].IsZero() || seen["spoiled"].IsZero() != (name != "once") {
					t.Errorf("seen: %v", seen)
				}
				s := g.Status()
				if want := uint64(min(spoiled, 2)); s.Refused != want || s.Sessions != 1 {
					t.Errorf("%d refused in %d sessions, want %d in 1", s.Refused, s.Sessions, want)
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				if len(l.opened) < 2 || l.opened[1] != "1" || len(l.opened) > 3 {
					t.Errorf("streams opened with Last-Event-ID %q, want the place before the spoiled one", l.opened)
				}
			})
		})
	}
}
