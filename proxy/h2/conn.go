package h2

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

const (
	streamWindow = 256 << 10 // what a client may send of one body ahead
	connWindow   = 1 << 20   // and of all
	maxFrame     = 16 << 10  // that we take, and send
	prefaceTime  = 10 * time.Second
	pingAfter    = 30 * time.Second // of silence, with streams open
	pongWithin   = 15 * time.Second
	maxControl   = 1000 // answers to a client that has not taken them
	maxEmpty     = 100  // frames in a row that bring nothing
	maxResets    = 200  // streams that a client took back, more than it let end
)

// conn is one client connection. Its reader is the goroutine of serve.
type conn struct {
	s  *Server
	c  *exchange.Conn
	in message.Reader
	fr *http2.Framer // read by the reader, from in; written under mu, into out

	reading watch.Alarm // preface, silence
	writing watch.Alarm // the client takes nothing
	looking watch.Alarm // time to tell the streams that last

	decoder *hpack.Decoder // the reader's
	block   block          // the reader's
	empty   int            // the reader's: frames in a row that bring nothing

	mu            sync.Mutex
	streams       map[uint32]*stream // guarded by mu; those whose walk goes on
	lastID        uint32             // guarded by mu; newest stream of the client
	table         bool               // guarded by mu; the client must be told that our table of fields is empty
	out           []byte             // guarded by mu; frames to send
	control       int                // guarded by mu; answers in out
	sending       bool               // guarded by mu; somebody is in send
	room          sync.Cond          // of mu: out was taken, or the connection has failed
	window        int64              // guarded by mu; what we may send
	initialWindow int64              // guarded by mu; of a new stream
	frame         int                // guarded by mu; the largest frame we send
	unsent        int64              // guarded by mu; consumed of connWindow and not granted again
	recvWindow    int64              // guarded by mu; what the client may send
	pinged        bool               // guarded by mu; silence was answered by a ping
	reset         [64]uint32         // guarded by mu; the newest streams that we have reset
	closed        [64]uint32         // guarded by mu; the newest that have ended
	resets        int                // guarded by mu; streams taken back, less those that ended well
	leaving       bool               // guarded by mu; GOAWAY was sent or received: no new stream
	failed        error              // guarded by mu; nothing can be sent any more
}

func newConn(s *Server, c *exchange.Conn) *conn {
	hc := &conn{s: s, c: c, streams: map[uint32]*stream{}, window: 65535, initialWindow: 65535, frame: maxFrame, recvWindow: connWindow, table: true}
	hc.room.L = &hc.mu
	hc.fr = http2.NewFramer((*outBuffer)(hc), &hc.in)
	hc.decoder = hpack.NewDecoder(4096, hc.field)
	hc.decoder.SetMaxStringLength(s.cfg.HeaderBytes)
	hc.fr.SetMaxReadFrameSize(maxFrame)
	hc.fr.SetReuseFrames()
	hc.in.Init(c)
	return hc
}

// outBuffer is what the framer writes into.
type outBuffer conn

func (o *outBuffer) Write(p []byte) (int, error) {
	(*conn)(o).hold()
	o.out = append(o.out, p...)
	return len(p), nil
}

// serve serves the connection until its end.
func (c *conn) serve() {
	w := c.s.cfg.Watch
	w.Add(&c.reading, c.silence)
	w.Add(&c.writing, c.c.Reset)
	w.Add(&c.looking, c.look)
	err := c.begin()
	for err == nil {
		err = c.next()
	}
	c.end(err)
	w.Remove(&c.reading)
	w.Remove(&c.writing)
	w.Remove(&c.looking)
	c.in.Drop()
	_ = c.c.Close()
}

// begin reads the preface and sends the settings.
func (c *conn) begin() error {
	c.reading.Arm(prefaceTime)
	var p [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(&c.in, p[:]); err != nil {
		return err
	}
	if string(p[:]) != http2.ClientPreface {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.fr.WriteSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.s.cfg.Streams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.s.cfg.HeaderBytes)},
	)
	_ = c.fr.WriteWindowUpdate(0, connWindow-65535)
	c.sendElsewhere()
	return nil
}

// silence rings when nothing was read for long: an idle connection ends, one
// with streams is asked whether it is there.
func (c *conn) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) == 0 || c.pinged || c.failed != nil {
		_ = c.c.SetReadDeadline(past)
		return
	}
	c.pinged = true
	_ = c.fr.WritePing(false, [8]byte{'y', 'u', 'm', 'e', 'n'})
	c.sendElsewhere()
	c.reading.Arm(pongWithin)
}

// lookEvery is how often streams are looked for that last.
const lookEvery = time.Second

// look tells the streams that have lasted a second.
func (c *conn) look() {
	var old []*stream
	c.mu.Lock()
	limit := c.s.cfg.Watch.Now() - lookEvery
	for _, s := range c.streams {
		if s.since <= limit {
			s.kept = true
			old = append(old, s)
		}
	}
	if len(c.streams) > 0 {
		c.looking.Arm(lookEvery)
	}
	c.mu.Unlock()
	for _, s := range old {
		s.x.Lasting()
	}
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// next reads one frame and does what it says. Its error ends the connection.
func (c *conn) next() error {
	c.mu.Lock()
	quiet, over := c.s.cfg.IdleTimeout, c.leaving && len(c.streams) == 0
	if len(c.streams) > 0 {
		quiet = pingAfter
	}
	c.pinged = false
	c.mu.Unlock()
	if over {
		return io.EOF
	}
	c.reading.Arm(quiet)
	if err := c.in.Wait(); err != nil {
		return err
	}
	f, err := c.fr.ReadFrame()
	if err == nil {
		err = c.frameOf(f)
	}
	var se http2.StreamError
	if errors.As(err, &se) {
		return c.resetStream(se)
	}
	return err
}

var errCalm = http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)

// frameOf does what one frame says.
func (c *conn) frameOf(f http2.Frame) error {
	useful := true
	defer func() {
		if useful {
			c.empty = 0
		}
	}()
	switch f := f.(type) {
	case *http2.HeadersFrame:
		if err := c.readBlock(f); err != nil {
			return err
		}
		err := c.headers(&c.block)
		c.block.forget()
		return err
	case *http2.DataFrame:
		if useful = len(f.Data()) > 0 || f.StreamEnded(); !useful {
			if c.empty++; c.empty > maxEmpty {
				return errCalm
			}
		}
		return c.data(f)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return c.answer(func() error { return c.fr.WritePing(true, f.Data) })
	case *http2.RSTStreamFrame:
		return c.clientReset(f)
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
	case *http2.GoAwayFrame:
		c.mu.Lock()
		c.leaving = true
		c.mu.Unlock()
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if useful = false; c.empty > 10*maxEmpty {
		return errCalm
	}
	c.empty++
	return nil
}

// answer queues what a frame demands. A client that demands much and takes
// nothing is closed.
func (c *conn) answer(write func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.control++; c.control > maxControl {
		return errCalm
	}
	_ = write()
	c.sendElsewhere()
	return nil
}

func (c *conn) resetStream(se http2.StreamError) error {
	c.mu.Lock()
	if se.StreamID > c.lastID && se.StreamID%2 == 1 {
		c.lastID = se.StreamID
	}
	s := c.streams[se.StreamID]
	if s != nil {
		s.failLocked(se)
	}
	c.reset[se.StreamID/2%uint32(len(c.reset))] = se.StreamID
	calm := c.oneMoreReset()
	c.mu.Unlock()
	if s != nil {
		s.x.Gone()
	}
	if !calm {
		return errCalm
	}
	return c.answer(func() error { return c.fr.WriteRSTStream(se.StreamID, se.Code) })
}

// clientReset takes a stream back. A client that does so all the time makes
// work for nothing (CVE-2023-44487).
func (c *conn) clientReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	if f.StreamID > c.lastID {
		c.mu.Unlock()
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	s := c.streams[f.StreamID]
	if s != nil {
		s.failLocked(errClientReset)
	}
	calm := c.oneMoreReset()
	c.mu.Unlock()
	if s != nil {
		s.x.Gone()
	}
	if !calm {
		return errCalm
	}
	return nil
}

// oneMoreReset counts a stream that came to nothing, and reports whether that is
// few enough. mu is held.
func (c *conn) oneMoreReset() bool {
	c.resets++
	return c.resets <= maxResets
}

var errClientReset = errors.New("h2: the client has reset the stream")

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > 100 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.mu.Lock()
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.table = true
		case http2.SettingInitialWindowSize:
			delta := int64(s.Val) - c.initialWindow
			c.initialWindow = int64(s.Val)
			for _, st := range c.streams {
				if st.window += delta; st.window > maxWindow {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
				st.wake.Broadcast()
			}
		case http2.SettingMaxFrameSize:
			c.frame = min(int(s.Val), maxFrame)
		}
		return nil
	})
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.answer(c.fr.WriteSettingsAck)
}

const maxWindow = 1<<31 - 1

func (c *conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		for _, s := range c.streams {
			s.wake.Broadcast()
		}
		return nil
	}
	if f.StreamID > c.lastID || f.StreamID%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	s := c.streams[f.StreamID]
	if s == nil {
		return nil
	}
	if s.window += int64(f.Increment); s.window > maxWindow {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	s.wake.Broadcast()
	return nil
}

// onTheirWay reports whether frames of a stream that takes none any more may
// have been sent before the client knew: we have reset it. s is nil for one whose
// walk has ended. mu is held.
func (c *conn) onTheirWay(id uint32, s *stream) bool {
	if s != nil {
		return s.recvErr != io.EOF && s.recvErr != errClientReset
	}
	return slices.Contains(c.reset[:], id)
}

// data gives a body's bytes to its stream.
func (c *conn) data(f *http2.DataFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID > c.lastID {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	n := int64(f.Length) // with padding
	if c.recvWindow -= n; c.recvWindow < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	s := c.streams[f.StreamID]
	if s == nil || s.recvErr != nil {
		c.consumed(n) // nobody will read it
		if c.onTheirWay(f.StreamID, s) {
			return nil
		}
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeStreamClosed}
	}
	if s.recvWindow -= n; s.recvWindow < 0 {
		c.consumed(n)
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	p := f.Data()
	s.received += int64(len(p))
	if s.declared >= 0 && (s.received > s.declared || f.StreamEnded() && s.received < s.declared) {
		c.consumed(n)
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	s.recv = append(s.recv, p...)
	if pad := n - int64(len(p)); pad > 0 {
		s.consumedLocked(pad)
	}
	if f.StreamEnded() {
		s.recvErr = io.EOF
	}
	s.wake.Broadcast()
	return nil
}

// drain tells the client to go away; streams in flight go on.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leaving {
		_ = c.fr.WriteGoAway(c.lastID, http2.ErrCodeNo, nil)
		c.leaving = true
		c.sendElsewhere()
	}
	if len(c.streams) == 0 {
		_ = c.c.SetReadDeadline(past)
	}
}

// end says why the connection ends, and ends its streams.
func (c *conn) end(err error) {
	var ce http2.ConnectionError
	code, say := http2.ErrCodeNo, true
	switch {
	case errors.As(err, &ce):
		code = http2.ErrCode(ce)
	case errors.Is(err, http2.ErrFrameTooLarge):
		code = http2.ErrCodeFrameSize
	default:
		say = false
	}
	c.mu.Lock()
	all := make([]*stream, 0, len(c.streams))
	for _, s := range c.streams {
		s.failLocked(fmt.Errorf("h2: the connection has ended: %w", err))
		all = append(all, s)
	}
	if say && c.failed == nil {
		_ = c.fr.WriteGoAway(c.lastID, code, nil)
		for c.send(); c.sending; {
			c.room.Wait() // somebody else sends it
		}
	}
	if c.failed == nil {
		c.failed = errors.New("h2: the connection has ended")
	}
	c.room.Broadcast()
	c.mu.Unlock()
	for _, s := range all {
		s.x.Gone()
	}
	if say {
		c.linger()
	}
}

// linger takes what the client is still sending, so that a reset does not
// overtake the GOAWAY.
func (c *conn) linger() {
	c.writing.Arm(c.s.cfg.WriteStall)
	if w, ok := c.c.Conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	c.writing.Disarm()
	if c.c.SetReadDeadline(time.Now().Add(200*time.Millisecond)) == nil {
		_, _ = io.CopyN(io.Discard, &c.in, 256<<10)
	}
}
