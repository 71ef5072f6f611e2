// Package exchange holds the protocol-neutral request that a front end of the
// proxy (HTTP/1.1, HTTP/2, HTTP/3) makes of what a client sent, and the
// answer's way back. Nothing here knows net/http: one walk serves all front
// ends, and each front end is the only parser of its protocol.
//
// Start with [Exchange]; [Stream] is what a front end implements.
package exchange

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Carrier is the kind of what an exchange runs on.
type Carrier string

// The carriers, as in the audit record.
const (
	H1        Carrier = "h1"
	H2        Carrier = "h2"
	H3        Carrier = "h3"
	SSE       Carrier = "sse"
	WebSocket Carrier = "websocket"
)

// ErrCut is what an exchange's writes return after [Exchange.Cut].
var ErrCut = errors.New("exchange: cut")

// Stream is the front end's half of an exchange. Abort and WakeReader may be
// called from any goroutine; the others are for the exchange's goroutine.
type Stream interface {
	// WriteInfo sends an informational answer, 102 to 199.
	WriteInfo(status int, h Header) error
	// WriteHeader sends the head of the final answer. length is the body's, -1
	// when it is not known. trailers names the trailer fields that may follow; nil
	// says that none will, empty that some may without having been announced.
	WriteHeader(status int, h Header, length int64, trailers []string) error
	// Write sends a part of the body; it may buffer. A client that takes nothing
	// for too long is aborted, here and in Flush.
	Write(p []byte) (int, error)
	// Flush sends what is buffered.
	Flush() error
	// WriteTrailer sets the trailer fields; it is the last call.
	WriteTrailer(h Header) error
	// Upgrade sends 101 with h and hands over the client's bytes from there on.
	// It refuses when the client sent bytes before it had the answer.
	Upgrade(h Header) (net.Conn, error)
	// CloseAfter makes this answer the last one of an HTTP/1.1 connection. It
	// is called before WriteHeader.
	CloseAfter()
	// Abort ends the stream at once, without an answer: a reset of the stream,
	// or of the connection where that is the stream. It does not block.
	Abort()
	// WakeReader fails a read of the body that waits, and those that come.
	WakeReader() error
}

// Exchange is one request and its answer. A front end fills the first part,
// the walk the second, in the order of its steps. Cut, CutReason and Context
// are for any goroutine, everything else for the exchange's own.
type Exchange struct {
	Conn      *Conn
	Stream    Stream
	Carrier   Carrier // H1, H2 or H3; the walk makes SSE or WebSocket of it
	Proto     string  // "HTTP/1.0", "HTTP/1.1", "HTTP/2.0" or "HTTP/3.0"
	Method    string
	Connect   string // :protocol of an extended CONNECT, which is a GET here; else empty
	Authority string // Host, or :authority, as sent
	Target    string // path and query as sent
	Header    Header // as sent, without Host
	Body      io.Reader
	Length    int64         // of the body: 0 none, -1 not known
	Announced []string      // names of the request trailers that may follow the body
	Trailer   func() Header // the request trailers, valid at the body's end; nil: none
	Start     time.Time
	// TellsLasting: the front end calls Lasting when the exchange is not over after
	// a second.
	TellsLasting bool

	ID     string         // request id, made by the gateway
	Remote netip.AddrPort // the client that a trusted forwarder names; not valid: the connection's, see Client
	Host   string         // canonical
	Port   string         // as sent, "" when absent
	Path   string         // canonical: what the policy sees and the upstream gets
	Query  string         // without "?"
	App    *apps.App
	Public bool           // the application's configuration makes the path public
	Facts  policy.Facts   // what the authenticator found
	Asked  policy.Request // what access was asked
	Ended  time.Time      // when the walk ended, for its last steps
	Note   any            // an authenticator's own, between Authenticate and Challenge
	Status int            // of the final answer, 0 before it
	Why    reason.Reason  // why it did not end as it should
	Leased bool           // access holds it, and writes its records

	BytesIn, BytesOut atomic.Int64 // bodies, counted by the walk

	cut  atomic.Uint32 // reason.Reason + 1
	over atomic.Bool   // cut, ended, or its client has gone

	mu       sync.Mutex
	parent   context.Context
	unhook   func() bool             // of parent
	ctx      context.Context         // guarded by mu; nil: nobody has asked for it
	cancel   context.CancelCauseFunc // guarded by mu; of ctx
	work     Aborter                 // guarded by mu: what waits elsewhere on behalf of x
	kept     bool                    // guarded by mu: by Keep
	started  bool                    // guarded by mu: the final answer has begun
	upgraded bool                    // guarded by mu: to another protocol
	ended    bool                    // guarded by mu: the front end has taken the stream back
	lasting  interface{ Lasts() }    // guarded by mu: wants to know of an exchange that lasts
	timer    *time.Timer             // guarded by mu: aborts a cut exchange that does not end

	answer Header // fields to add to the final answer
}

// Aborter is work elsewhere that an exchange waits for. Abort makes it fail
// soon; it does not block, and may be called from any goroutine.
type Aborter interface{ Abort() }

// Begin prepares x for the walk. Front ends call it once, and End after the
// walk. The end of parent is the end of the client.
func (x *Exchange) Begin(parent context.Context, now time.Time) {
	x.Start, x.parent = now, parent
	if parent.Done() != nil {
		x.unhook = context.AfterFunc(parent, x.Gone)
	}
}

// End ends the exchange: its stream is not touched any more, also by a Cut
// that comes too late.
func (x *Exchange) End() {
	if x.unhook != nil {
		x.unhook()
	}
	x.over.Store(true)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	if x.timer != nil {
		x.timer.Stop()
	}
	x.interruptLocked(context.Canceled)
}

// Keep says that somebody may know x beyond its end.
func (x *Exchange) Keep() {
	x.mu.Lock()
	x.kept = true
	x.mu.Unlock()
}

// Free reports, after End, that nobody knows x any more but its front end, which
// may use its memory again: nobody has kept it, cut it, asked for its context or
// read its body, which an upstream's engine does on a goroutine of its own.
func (x *Exchange) Free() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ended && !x.kept && !x.upgraded && x.Body == nil && x.ctx == nil && x.timer == nil && x.unhook == nil && x.cut.Load() == 0
}

// OnLasting makes l the one that Lasting tells.
func (x *Exchange) OnLasting(l interface{ Lasts() }) {
	x.mu.Lock()
	x.lasting = l
	x.mu.Unlock()
}

// Lasting says that the exchange was not over after a second. It may be called
// again and again.
func (x *Exchange) Lasting() {
	x.mu.Lock()
	l := x.lasting
	if x.ended {
		l = nil
	}
	x.mu.Unlock()
	if l != nil {
		l.Lasts()
	}
}

// Gone says that the client has gone away.
func (x *Exchange) Gone() { x.interrupt(context.Canceled) }

// interrupt ends whatever waits on behalf of x.
func (x *Exchange) interrupt(cause error) {
	x.over.Store(true)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.interruptLocked(cause)
}

func (x *Exchange) interruptLocked(cause error) {
	if x.cancel != nil {
		x.cancel(cause)
	}
	if x.work != nil {
		x.work.Abort() // under the lock: after Hold it is somebody else's
	}
}

// Over reports whether the exchange was cut or has ended, or its client has
// gone: nobody waits for the answer.
func (x *Exchange) Over() bool { return x.over.Load() }

// Hold makes a the work that is aborted when x is over, instead of what was
// held before; nil is none. It reports false, and holds nothing, when x is over
// already.
func (x *Exchange) Hold(a Aborter) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.work = nil
	if x.over.Load() {
		return false
	}
	x.work = a
	return true
}

// Context ends when the client goes away or the exchange is cut.
func (x *Exchange) Context() context.Context {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ctx == nil {
		x.ctx, x.cancel = context.WithCancelCause(x.parent)
		if x.over.Load() {
			x.cancel(context.Canceled)
		}
	}
	return x.ctx
}

// CutGrace is how long a cut exchange that has not begun its answer may take
// to say why.
const CutGrace = 100 * time.Millisecond

// UpgradedGrace is how long a cut exchange that was upgraded may take to say why
// in its own protocol. No byte of the application is passed on meanwhile.
const UpgradedGrace = 15 * time.Millisecond

// Cut withdraws the right to go on, for r. An answer that has begun is reset
// at once; otherwise the walk has [CutGrace] to send a refusal, and after an
// upgrade [UpgradedGrace] for a farewell. Cut does not block; later calls do
// nothing.
func (x *Exchange) Cut(r reason.Reason) {
	if !x.cut.CompareAndSwap(0, uint32(r)+1) {
		return
	}
	x.interrupt(ErrCut)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.ended:
	case x.upgraded:
		x.timer = time.AfterFunc(UpgradedGrace, x.Abort)
	case x.started:
		x.Stream.Abort()
	default:
		_ = x.Stream.WakeReader()
		x.timer = time.AfterFunc(CutGrace, x.Abort)
	}
}

// Abort resets the stream, unless the exchange has ended. It does not block.
func (x *Exchange) Abort() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.ended {
		x.Stream.Abort()
	}
}

// WakeReader fails the body's reads from now on, unless the exchange has
// ended.
func (x *Exchange) WakeReader() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.ended {
		_ = x.Stream.WakeReader()
	}
}

// CutReason returns why the exchange was cut, and whether it was.
func (x *Exchange) CutReason() (reason.Reason, bool) {
	c := x.cut.Load()
	if c == 0 {
		return reason.OK, false
	}
	return reason.Reason(c - 1), true
}

// Started reports whether the final answer has begun.
func (x *Exchange) Started() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.started
}

// Add adds a field to the final answer, whoever gives it: a cookie, say.
func (x *Exchange) Add(name, value string) { x.answer.Add(name, value) }

// WriteHeader begins the final answer. It returns [ErrCut] for an exchange
// that was cut, of which nothing has been sent then.
func (x *Exchange) WriteHeader(status int, h Header, length int64, trailers []string) error {
	x.mu.Lock()
	if _, cut := x.CutReason(); cut {
		x.mu.Unlock()
		return ErrCut
	}
	x.started = true
	x.mu.Unlock()
	return x.head(status, h, length, trailers)
}

func (x *Exchange) head(status int, h Header, length int64, trailers []string) error {
	x.Status = status
	return x.Stream.WriteHeader(status, append(h, x.answer...), length, trailers)
}

// Upgrade answers 101 with h and returns the client's bytes from there on. It
// returns [ErrCut] for an exchange that was cut, of which nothing has been
// sent then.
func (x *Exchange) Upgrade(h Header) (net.Conn, error) {
	x.mu.Lock()
	if _, cut := x.CutReason(); cut {
		x.mu.Unlock()
		return nil, ErrCut
	}
	x.started, x.upgraded = true, true
	x.mu.Unlock()
	x.Status = 101
	return x.Stream.Upgrade(append(h, x.answer...))
}

// Respond sends a whole answer of the gateway's own, also when the exchange
// was cut; HEAD gets no body. It does nothing when an answer has begun.
func (x *Exchange) Respond(status int, h Header, body []byte) {
	x.mu.Lock()
	begun := x.started
	x.started = true
	x.mu.Unlock()
	if begun {
		return
	}
	if err := x.head(status, h, int64(len(body)), nil); err != nil || x.Method == "HEAD" {
		return
	}
	n, err := x.Stream.Write(body)
	x.BytesOut.Add(int64(n))
	if err == nil {
		_ = x.Stream.Flush()
	}
}
