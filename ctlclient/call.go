package ctlclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// maxReplyBytes bounds an answer.
const maxReplyBytes = wire.MaxMessage

// callerConfig is what a caller needs.
type callerConfig struct {
	url, base     string // https base of the control center; path of this link
	id            string // who we are in envelopes
	controlID     string // default: the one of control-sign.crt
	keys          *keystore.Store
	crypto        profile.Profile // by which protocol
	requireSealed bool            // answers
	timeout       time.Duration
	dial          func(ctx context.Context, network, addr string) (net.Conn, error)
	now           func() time.Time
}

// caller sends messages to the control center and checks its answers. It may
// be used by several goroutines at once.
type caller struct {
	cfg      callerConfig
	base     string
	keys     atomic.Pointer[messageKeys]
	channels *channel.Client
	newest   atomic.Pointer[channel.State] // of the connection made last; nil before

	kept  *http.Client // connections are kept
	fresh *http.Client // each request on its own

	hedges   budget
	pace     pace
	rescuing atomic.Bool // a message goes again without a hedge

	silences silences
	tries    sync.WaitGroup // attempts that run
	life     context.Context
	end      context.CancelFunc // ends life: the attempts that nobody waits for
}

func newCaller(cfg callerConfig) (*caller, error) {
	u, err := url.Parse(cfg.url)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("make control link: url %q is no https address", cfg.url)
	}
	if cfg.keys == nil {
		return nil, errors.New("make control link: no keys (run yumen enroll first)")
	}
	if cfg.timeout == 0 {
		cfg.timeout = 10 * time.Second
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	c := &caller{cfg: cfg, base: strings.TrimSuffix(u.String(), "/") + cfg.base}
	c.life, c.end = context.WithCancel(context.Background())
	m, err := c.loadMessageKeys(cfg.keys)
	if err != nil {
		return nil, fmt.Errorf("make control link: %w", err)
	}
	c.cfg.controlID = m.controlID
	c.keys.Store(m)
	if c.channels, err = c.newChannels(); err != nil {
		return nil, fmt.Errorf("make control link: %w", err)
	}
	c.kept, c.fresh = c.client(false), c.client(true)
	return c, nil
}

func verifyChain(chain []*smx509.Certificate, roots *smx509.CertPool, now time.Time) error {
	between := smx509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(smx509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []smx509.ExtKeyUsage{smx509.ExtKeyUsageAny}})
	return err
}

// close ends the attempts that still run and closes kept connections.
func (c *caller) close() {
	c.end()
	c.tries.Wait()
	c.kept.CloseIdleConnections()
	c.fresh.CloseIdleConnections()
}

// errNotIdentified is the control center's wish for Table 4 or 16 first (M52).
var errNotIdentified = fmt.Errorf("%w: it wants our identity first", ErrDown)

// exchange sends one sealed message and judges what comes back.
func (c *caller) exchange(ctx context.Context, client *http.Client, path, msgType string, raw []byte) (*envelope.Message, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header["Idempotency-Key"] = nil // not sent; lets net/http try again when a kept connection proves dead: the msgId makes it safe
	resp, err := client.Do(req)
	if err != nil {
		return nil, down(err)
	}
	defer resp.Body.Close()
	return c.answer(resp, msgType)
}

// get fetches one signed message of the type named.
func (c *caller) get(ctx context.Context, path, msgType string) (*envelope.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.timeout)
	defer cancel()
	resp, err := c.fetch(ctx, path, nil, c.pace.twice())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m, err := c.answer(resp, msgType)
	if err == nil && m.Header.MsgType != msgType {
		return nil, fmt.Errorf("%w: %s instead of %s", ErrDown, m.Header.MsgType, msgType)
	}
	return m, err
}

// answer reads the reply envelope. Nothing that the control center has not
// signed says anything but that it is down.
func (c *caller) answer(resp *http.Response, msgType string) (*envelope.Message, error) {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes+1))
	if err != nil {
		return nil, down(err)
	}
	m, err := c.keys.Load().replies.Open(raw)
	if err != nil {
		switch resp.StatusCode {
		case http.StatusOK:
			return nil, fmt.Errorf("%w: its answer: %w", ErrDown, withCause(err))
		case http.StatusUnauthorized:
			return nil, fmt.Errorf("%w: HTTP status 401 (it does not know our certificate, or no longer: run yumen enroll)", ErrDown)
		case http.StatusForbidden:
			return nil, errNotIdentified
		case http.StatusRequestEntityTooLarge:
			return nil, &RefusedError{Table: tableOf(msgType), Reason: reason.MessageTooLarge, Result: reason.MessageTooLarge.Result()}
		}
		return nil, &statusError{resp.StatusCode}
	}
	m.Raw = raw
	if resp.StatusCode != http.StatusOK || m.Header.MsgType == "T5" || m.Header.MsgType == "T18" {
		err := refusal(m, msgType)
		var no *RefusedError
		switch {
		case err == nil && resp.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("%w: HTTP status %d", ErrDown, resp.StatusCode)
		case !errors.As(err, &no):
			return m, err
		case no.Reason == reason.InternalError:
			return nil, &failedError{no.Result}
		case no.Reason == reason.Overload || no.Reason == reason.Shutdown:
			return nil, fmt.Errorf("%w: %s", ErrDown, no.Result)
		case no.Reason == reason.NotAuthenticated:
			return nil, errNotIdentified
		}
		return nil, err
	}
	return m, nil
}

// refusal reads code and result, which Tables 5 and 18 share.
func refusal(m *envelope.Message, msgType string) error {
	r, err := wire.DecodeExtension[struct {
		Code   int    `json:"code"`
		Result string `json:"result"`
	}](m.Body)
	if err != nil {
		return fmt.Errorf("%w: its answer: %w", ErrDown, err)
	}
	switch r.Code {
	case wire.Success:
		return nil
	case wire.Failure:
		no := &RefusedError{Table: tableOf(msgType), Reason: resultReason(r.Result), Result: r.Result, reply: m}
		_ = json.Unmarshal(m.Header.Ext[wire.ExtMessage], &no.Message) // absent, or no text: nothing is said
		return no
	}
	return fmt.Errorf("%w: its answer has the code %d", ErrDown, r.Code)
}

// resultReason finds the reason that a result starts with.
func resultReason(result string) reason.Reason {
	word, _, _ := strings.Cut(result, " ")
	if r, err := reason.Parse(strings.TrimSuffix(word, ":")); err == nil {
		return r
	}
	return reason.MessageInvalid
}

func tableOf(msgType string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(msgType, "T"))
	return n
}

// down marks an error of the connection.
func down(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the address, which the log has anyway
	}
	if noAnswer(err) {
		return fmt.Errorf("%w: %w: %w", ErrDown, ErrUnreachable, err)
	}
	return fmt.Errorf("%w: %w", ErrDown, err)
}

// failedError is the control center's signed word that it could not take a
// message, by a fault of its own.
type failedError struct{ result string }

func (e *failedError) Error() string { return fmt.Sprintf("%v: %s", ErrDown, e.result) }
func (e *failedError) Unwrap() error { return ErrDown }

// statusError is an answer without an envelope.
type statusError struct{ code int }

func (e *statusError) Error() string { return fmt.Sprintf("%v: HTTP status %d", ErrDown, e.code) }
func (e *statusError) Unwrap() error { return ErrDown }

// noAnswer reports whether err says that nobody answered, or not to the end. A
// peer that shows a wrong certificate, or refuses ours, has answered.
func noAnswer(err error) bool {
	var network net.Error
	var dial *channel.DialError
	switch {
	case errors.As(err, &dial):
		return true
	case channel.Answered(err):
		return false
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return true
	}
	return false
}

// withCause adds the detail that a rejected envelope keeps for logs.
func withCause(err error) error {
	var re *envelope.RejectedError
	if errors.As(err, &re) {
		if cause := errors.Unwrap(re); cause != nil {
			return fmt.Errorf("%w: %s: %w", err, re.Reason, cause)
		}
		return fmt.Errorf("%w: %s", err, re.Reason)
	}
	return err
}
