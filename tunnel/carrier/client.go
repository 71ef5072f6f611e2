package carrier

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// Client is the agent's end of a tunnel. Make it with [Connect]. Its methods
// may be called from any goroutine.
type Client struct {
	cfg  ClientConfig
	mux  *mux.Session
	seal *Sealer
	done chan struct{} // closed after the reader has ended

	mu      sync.Mutex
	waiting []chan *wire.Reply // guarded by mu; who waits for a Reply, in their order
}

// ClientConfig is what [Connect] needs. The zero value of an optional field
// selects its default.
type ClientConfig struct {
	// Hello returns the X.hello envelope that carries h, sealed to the gateway
	// and signed by the agent, whose chain is in the header's extension
	// "signer"; required.
	Hello func(h wire.TunnelHello) ([]byte, error)
	// Identity is the hello without its key and version; required.
	Identity wire.TunnelHello
	// Notices gets every Table 15, on the reader's goroutine; it must not
	// block. Default: dropped.
	Notices func(*wire.Notice)
	// Profile reads the gateway's messages. Default: lax.
	Profile wire.Profile
	// Mux bounds the tunnel; its Handler and Answer are set here.
	Mux mux.Config
}

// maxWaiting bounds the hellos and renewals without a reply.
const maxWaiting = 16

// RefusedError says that the gateway refused: the hello, Table 12 or Table 14.
type RefusedError struct {
	Reason reason.Reason
	Result string // the reply's result as it came; "" when there was no reply
}

// Error returns the reply's result, or the reason's.
func (e *RefusedError) Error() string {
	if e.Result != "" {
		return "gateway refused: " + e.Result
	}
	return "gateway refused: " + e.Reason.Result()
}

// refused reads the reason's code at the beginning of a result. A gateway of
// another make may say something else: then the reason is InternalError.
func refused(result string) *RefusedError {
	code, _, _ := strings.Cut(result, " ")
	r, err := reason.Parse(code)
	if err != nil || r == reason.OK {
		r = reason.InternalError
	}
	return &RefusedError{Reason: r, Result: result}
}

// Connect says hello on conn and returns when the gateway has accepted, or a
// [*RefusedError]. It owns conn from then on. ctx bounds the hello alone.
func Connect(ctx context.Context, conn net.Conn, cfg ClientConfig) (*Client, error) {
	c := &Client{cfg: cfg, done: make(chan struct{})}
	h := cfg.Identity
	h.Version, h.Key = 1, make([]byte, 16)
	if _, err := rand.Read(h.Key); err != nil {
		return nil, errors.Join(fmt.Errorf("make tunnel key: %w", err), conn.Close())
	}
	var err error
	if c.seal, err = NewSealer(h.Key, false); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	envelope, err := cfg.Hello(h)
	clear(h.Key)
	if err == nil && len(envelope) >= mux.MaxMessage {
		err = fmt.Errorf("%d bytes, at most %d", len(envelope), mux.MaxMessage-1)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make hello: %w", err), conn.Close())
	}
	mc := cfg.Mux
	mc.Handler, mc.Answer, mc.RoundTrip = clientHandler{c}, c.answer, RoundTrip
	if mc.MessageRate == 0 { // a gateway may have many notices at once
		mc.MessageRate, mc.MessageBurst = 256, 2048
	}
	c.mux = mux.Client(conn, mc)
	go func() {
		defer close(c.done)
		_ = c.mux.Run(context.Background())
	}()
	reply, err := c.ask(ctx, func() error { return c.mux.Send(append([]byte{Hello}, envelope...)) })
	if err == nil && reply.Code != wire.Success {
		err = refused(reply.Result)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// ask sends and waits for the Reply.
func (c *Client) ask(ctx context.Context, send func() error) (*wire.Reply, error) {
	got := make(chan *wire.Reply, 1)
	c.mu.Lock()
	if len(c.waiting) >= maxWaiting {
		c.mu.Unlock()
		return nil, mux.ErrBusy
	}
	if err := send(); err != nil {
		c.mu.Unlock()
		return nil, c.why(err)
	}
	c.waiting = append(c.waiting, got)
	c.mu.Unlock()
	select {
	case r := <-got:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.mux.Done():
		select {
		case r := <-got: // it came just before the end
			return r, nil
		default:
			return nil, c.why(c.mux.Err())
		}
	}
}

// why turns the gateway's goodbye into a refusal: it has said what it had to.
func (c *Client) why(err error) error {
	var ce *mux.ClosedError
	if errors.As(c.mux.Err(), &ce) {
		if ce.Remote && ce.Reason != reason.TunnelClosed {
			return &RefusedError{Reason: ce.Reason}
		}
		return ce
	}
	return err
}

// Open asks by Table 12 for one flow; network is "tcp" or "udp". It returns a
// [*mux.Flow]. A refusal by Table 13 is a [*RefusedError].
func (c *Client) Open(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error) {
	if network != "tcp" && network != "udp" {
		return nil, fmt.Errorf("open flow: network %q is not tcp or udp", network)
	}
	body, err := wire.Encode(m)
	if err != nil {
		return nil, err
	}
	var f *mux.Flow
	err = c.seal.Seal(AccessRequest, body, func(sealed []byte) (err error) {
		f, err = c.mux.Start(network == "udp", sealed)
		return err
	})
	if err != nil {
		return nil, c.flowError(err)
	}
	raw, err := f.Wait(ctx)
	if err != nil {
		return nil, c.flowError(err)
	}
	reply, err := wire.Decode[wire.AccessReply](raw, c.cfg.Profile)
	if err == nil && reply.Code != wire.Success {
		err = refused(reply.Result)
	}
	if err != nil {
		f.Reset(reason.MessageInvalid)
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (c *Client) flowError(err error) error {
	var re *mux.RefusedError
	if !errors.As(err, &re) {
		return c.why(err)
	}
	if m, err := wire.Decode[wire.AccessReply](re.Payload, c.cfg.Profile); err == nil && m.Code != wire.Success {
		out := refused(m.Result)
		if out.Reason == reason.InternalError {
			out.Reason = re.Reason
		}
		return out
	}
	return &RefusedError{Reason: re.Reason}
}

// Renew sends Table 14 and waits for the reply. A refusal is a
// [*RefusedError].
func (c *Client) Renew(ctx context.Context, m *wire.Renewal) error {
	body, err := wire.Encode(m)
	if err != nil {
		return err
	}
	reply, err := c.ask(ctx, func() error { return c.seal.Seal(Renewal, body, c.mux.Send) })
	if err != nil {
		return err
	}
	if reply.Code != wire.Success {
		return refused(reply.Result)
	}
	return nil
}

// Done is closed when the tunnel has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.mux.Done() }

// Err returns nil while the tunnel lives. What the gateway said at its end is a
// [*RefusedError].
func (c *Client) Err() error {
	if err := c.mux.Err(); err != nil {
		return c.why(err)
	}
	return nil
}

// Close ends the tunnel with all its flows, and waits for its goroutine.
func (c *Client) Close() error {
	c.mux.Close(reason.ClientGone)
	<-c.done
	return nil
}

// Stats returns a picture of the tunnel.
func (c *Client) Stats() mux.Stats { return c.mux.Stats() }

// answer opens Table 13, on the reader's goroutine.
func (c *Client) answer(sealed []byte) ([]byte, reason.Reason) {
	kind, body, err := c.seal.Open(sealed)
	if err != nil || kind != AccessReply {
		return nil, reason.MessageSealed
	}
	return body, reason.OK
}

type clientHandler struct{ c *Client }

// Open is never called at the agent's end.
func (clientHandler) Open(f *mux.Flow, _ []byte) { _ = f.Close() }

// Message takes Reply and Table 15.
func (h clientHandler) Message(sealed []byte) reason.Reason {
	c := h.c
	kind, body, err := c.seal.Open(sealed)
	if err != nil {
		return reason.MessageSealed
	}
	switch kind {
	case Reply:
		m, err := wire.Decode[wire.Reply](body, c.cfg.Profile)
		if err != nil {
			return reason.MessageInvalid
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.waiting) == 0 {
			return reason.FrameMalformed
		}
		c.waiting[0] <- m // of capacity 1
		c.waiting = c.waiting[1:]
	case Notice:
		// One that breaks a rule is no ground to lose every flow.
		if m, err := wire.Decode[wire.Notice](body, c.cfg.Profile); err == nil && c.cfg.Notices != nil {
			c.cfg.Notices(m)
		}
	default:
		return reason.MessageSealed
	}
	return reason.OK
}
