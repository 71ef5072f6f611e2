package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// tap lets a test see the agent's OPEN records and add bytes of its own, as an
// agent gone bad could.
type tap struct {
	net.Conn
	mu       sync.Mutex
	opens    [][]byte
	messages [][]byte
	noCredit bool // OPENs leave with a window of 0
}

func (c *tap) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := b; len(r) >= mux.HeaderSize; {
		n := mux.HeaderSize + int(binary.BigEndian.Uint16(r[2:]))
		if n > len(r) {
			break
		}
		switch mux.Kind(r[0]) {
		case mux.Open:
			if c.noCredit {
				clear(r[mux.HeaderSize : mux.HeaderSize+4])
			}
			c.opens = append(c.opens, append([]byte(nil), r[:n]...))
		case mux.Message:
			c.messages = append(c.messages, append([]byte(nil), r[:n]...))
		}
		r = r[n:]
	}
	return c.Conn.Write(b)
}

func (w *world) tapped(p party) (*carrier.Client, *tap) {
	w.t.Helper()
	x := &tap{Conn: w.dial(p)}
	c, err := carrier.Connect(w.t.Context(), x, carrier.ClientConfig{
		Hello:    w.hello(p, p.agent),
		Identity: wire.TunnelHello{AgentID: p.agent, DeviceID: p.device, UserID: p.user, AuthToken: p.token},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c, x
}

func TestGCR002_M79_AReplayedRequestEndsTheTunnel(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c, x := w.tapped(w.alice)
	f := w.open(c, "tcp", w.request(w.alice))
	w.echoes(f, "first")
	again := append([]byte(nil), x.opens[0]...)
	binary.BigEndian.PutUint32(again[4:], 2) // the same sealed T12 under the next id
	if _, err := x.Conn.Write(again); err != nil {
		t.Fatal(err)
	}
	var re *mux.ResetError
	if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.MessageSealed {
		t.Errorf("flow: %v", err)
	}
	<-c.Done()
	if got := refusal(c.Err()); got != reason.MessageSealed {
		t.Errorf("tunnel: %v", c.Err())
	}
	eventually(t, "an alert", func() bool { _, ok := w.rec.raised(alert.TunnelAbuse); return ok })
	if n := len(w.hits); n != 1 {
		t.Errorf("%d connections came to the application, want 1", n)
	}
}

// A renewal that is played again, in its tunnel or in another one of the same
// device, renews nothing and ends where it came.
func TestGCR002_M81_AReplayedRenewalEndsTheTunnel(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c, x := w.tapped(w.alice)
	other, y := w.tapped(w.alice)
	if err := c.Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: wire.FormatTime(w.clock.now())}); err != nil {
		t.Fatal(err)
	}
	x.mu.Lock()
	renewal := x.messages[len(x.messages)-1]
	x.mu.Unlock()
	for _, to := range []struct {
		c *carrier.Client
		x *tap
	}{{other, y}, {c, x}} {
		if _, err := to.x.Conn.Write(renewal); err != nil {
			t.Fatal(err)
		}
		<-to.c.Done()
		if got := refusal(to.c.Err()); got != reason.MessageSealed {
			t.Errorf("tunnel: %v", to.c.Err())
		}
	}
	if n, _ := w.rec.audited(audit.Interface, "T14"); n != 1 {
		t.Errorf("%d renewals, want 1", n)
	}
	if a, ok := w.rec.raised(alert.TunnelAbuse); !ok || a.DeviceID != w.alice.device {
		t.Errorf("alert %+v", a)
	}
}

func TestGCR002_M79_MessagesAtTheWrongPlaceEndTheTunnel(t *testing.T) {
	for name, do := range map[string]func(w *world, x *tap){
		"a second hello": func(w *world, x *tap) {
			h, err := w.hello(w.alice, w.alice.agent)(wire.TunnelHello{AgentID: w.alice.agent, Key: make([]byte, 16), Version: 1})
			if err != nil {
				w.t.Fatal(err)
			}
			_, _ = x.Conn.Write(record(mux.Message, 0, append([]byte{carrier.Hello}, h...)))
		},
		"T12 as a message": func(w *world, x *tap) { _, _ = x.Conn.Write(record(mux.Message, 0, x.opens[0][mux.HeaderSize+4:])) },
		"an open T14": func(w *world, x *tap) {
			_, _ = x.Conn.Write(record(mux.Message, 0, append([]byte{carrier.Renewal}, `{"authToken":"x"}`...)))
		},
		"an open T12": func(w *world, x *tap) {
			_, _ = x.Conn.Write(record(mux.Open, 9, append([]byte{0, 0, 0, 9, carrier.AccessRequest}, `{}`...)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "127.0.0.1", Limits{})
			c, x := w.tapped(w.alice)
			w.open(c, "tcp", w.request(w.alice))
			do(w, x)
			<-c.Done()
			if got := refusal(c.Err()); got != reason.MessageSealed && got != reason.FrameMalformed {
				t.Errorf("ended by %v", c.Err())
			}
			eventually(t, "leases are released", func() bool { return w.access.Stats().Leases == 0 })
		})
	}
}

func record(k mux.Kind, flow uint32, payload []byte) []byte {
	b := make([]byte, mux.HeaderSize, mux.HeaderSize+len(payload))
	b[0] = byte(k)
	binary.BigEndian.PutUint16(b[2:], uint16(len(payload)))
	binary.BigEndian.PutUint32(b[4:], flow)
	return append(b, payload...)
}

// bare is an agent's end whose messages a test writes itself: a genuine agent
// encodes nothing that is not valid.
func (w *world) bare(p party) (*mux.Session, *carrier.Sealer, chan []byte) {
	t := w.t
	t.Helper()
	conn := w.dial(p)
	key := []byte("0123456789abcdef")
	hello, err := w.hello(p, p.agent)(wire.TunnelHello{AgentID: p.agent, DeviceID: p.device, UserID: p.user, AuthToken: p.token, Key: key, Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	seal, err := carrier.NewSealer(key, false)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 4)
	s := mux.Client(conn, mux.Config{Handler: messages(got)})
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(context.Background()) })
	t.Cleanup(func() { s.Close(reason.Shutdown); wg.Wait() })
	if err := s.Send(append([]byte{carrier.Hello}, hello...)); err != nil {
		t.Fatal(err)
	}
	if kind, body, err := seal.Open(<-got); err != nil || kind != carrier.Reply {
		t.Fatalf("reply: %d %s %v", kind, body, err)
	}
	return s, seal, got
}

// A valid T12 that breaks a rule is answered; the tunnel lives.
func TestGCR002_M72_InvalidRequestIsAnswered(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	s, seal, got := w.bare(w.alice)
	for _, body := range []string{`{}`, `[]`, `{"agentId":"AGT00000001"}`, `not json`, ``} {
		var f *mux.Flow
		if err := seal.Seal(carrier.AccessRequest, []byte(body), func(b []byte) (err error) { f, err = s.Start(false, b); return err }); err != nil {
			t.Fatal(err)
		}
		_, err := f.Wait(t.Context())
		var re *mux.RefusedError
		if !errors.As(err, &re) || re.Reason != reason.MessageInvalid {
			t.Errorf("%q: %v", body, err)
		}
		// And T14.
		if err := seal.Seal(carrier.Renewal, []byte(body), s.Send); err != nil {
			t.Fatal(err)
		}
		if m := <-got; len(m) == 0 || m[0] != carrier.Reply {
			t.Errorf("T14 %q: % x", body, m)
		}
	}
	if err := s.Err(); err != nil {
		t.Errorf("the tunnel ended: %v", err)
	}
}

// An address is one of Table 20 in its one spelling, or none: what a laxer parser
// would take for a resource, or for something behind it, is refused.
func TestS17_OddSpellingsOfAddressesReachNothing(t *testing.T) {
	both(t, Limits{}, func(t *testing.T, w *world) {
		s, seal, _ := w.bare(w.alice)
		body, err := wire.Encode(w.request(w.alice))
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range []string{
			"127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.01", "127.0.0.1%lo", "::1%1", "[::1]", "::127.0.0.1", "64:ff9b::7f00:1",
			"2002:7f00:1::", "::ffff:0:127.0.0.1", "::ffff:7f00:9", "::ffff:127.0.0.9", "0:0:0:0:0:ffff:127.0.0.9", "0::1:1", "localhost", "127.0.0.1 ",
			" 127.0.0.1", "127.0.0.1\\u0000", "127.0.0.1/32", "127.0.0.1:80", "127.0.0.1@127.0.0.9", "\uff11\uff12\uff17.0.0.1", "",
		} {
			for _, udp := range []bool{false, true} {
				odd := strings.Replace(string(body), `"`+w.host+`"`, `"`+ip+`"`, 1)
				var f *mux.Flow
				if err := seal.Seal(carrier.AccessRequest, []byte(odd), func(b []byte) (err error) { f, err = s.Start(udp, b); return err }); err != nil {
					t.Fatal(err)
				}
				_, err := f.Wait(t.Context())
				var re *mux.RefusedError
				if !errors.As(err, &re) || re.Reason != reason.MessageInvalid && re.Reason != reason.DestinationRule {
					t.Errorf("%q: %v", ip, err)
				}
			}
		}
		if len(w.hits) != 0 {
			t.Error("a flow came to the application")
		}
	})
}

type messages chan []byte

func (messages) Open(f *mux.Flow, _ []byte) { _ = f.Close() }

func (m messages) Message(p []byte) reason.Reason {
	m <- append([]byte(nil), p...)
	return reason.OK
}
