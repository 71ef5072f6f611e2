package ctlclient

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/wire"
)

// eventKind is what came over the push stream.
type eventKind uint8

const (
	eventOpen    eventKind = iota + 1 // the stream is open, or there is none: pull now
	eventDelta                        // data is an X.delta envelope
	eventChanged                      // data names a list to pull
	eventResync                       // changes were missed: pull everything
)

type event struct {
	kind eventKind
	id   string
	data []byte
}

// silence is how long the push stream may say nothing: two heartbeats of 10 s
// and some.
const silence = 25 * time.Second

// maxEvent bounds one event: a delta is one message.
const maxEvent = wire.MaxMessage + 4096

// push reads the push stream until ctx or the stream ends. A control center
// that has none leaves it at the pulls.
func (g *Gateway) push(ctx context.Context, out chan<- event) error {
	send := func(e event) error {
		select {
		case out <- e:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.call.base+"/events", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	g.mu.Lock()
	if g.lastEvent != "" {
		req.Header.Set("Last-Event-ID", g.lastEvent)
	}
	g.mu.Unlock()
	resp, err := g.call.kept.Do(req)
	if err != nil {
		return down(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return errNotIdentified
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		g.log.Warn("control center has no push stream: lists are only pulled")
		if err := send(event{kind: eventOpen}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	default:
		return fmt.Errorf("%w: push stream: HTTP status %d", ErrDown, resp.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "text/event-stream" {
		return fmt.Errorf("%w: push stream: content type %q", ErrDown, resp.Header.Get("Content-Type"))
	}
	g.set(func(s *GatewayStatus) { s.Push = true })
	defer g.set(func(s *GatewayStatus) { s.Push = false })
	if err := send(event{kind: eventOpen}); err != nil {
		return err
	}

	watch := time.AfterFunc(silence, func() { cancel(errors.New("no heartbeat")) })
	defer watch.Stop()
	err = readEvents(resp.Body, func() { watch.Reset(silence) }, func(id, name string, data []byte) error {
		e := event{id: id, data: data}
		switch name {
		case "delta":
			e.kind = eventDelta
		case "changed":
			e.kind = eventChanged
		case "resync":
			e.kind = eventResync
		default:
			g.log.Debug("event of an unknown kind", zap.String("event", name))
			return nil
		}
		return send(e)
	})
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return ctx.Err()
	}
	return fmt.Errorf("%w: push stream: %w", ErrDown, err)
}

// readEvents reads server-sent events from r until it ends: alive is called for
// each line, dispatch for each event, whose data it may keep. It never returns
// nil: a stream that ends is an error.
func readEvents(r io.Reader, alive func(), dispatch func(id, name string, data []byte) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 4096), maxEvent)
	var id, name string
	var data []byte
	lines := 0
	for in.Scan() {
		alive()
		line := in.Bytes()
		if len(line) == 0 {
			if lines > 0 {
				if err := dispatch(id, name, data); err != nil {
					return err
				}
			}
			id, name, data, lines = "", "", nil, 0
			continue
		}
		field, value, _ := bytes.Cut(line, []byte{':'})
		value = bytes.TrimPrefix(value, []byte{' '})
		switch string(field) {
		case "": // a comment: the heartbeat
			continue
		case "id":
			if len(value) <= 64 && !bytes.ContainsRune(value, 0) {
				id = string(value)
			}
		case "event":
			name = string(value)
		case "data":
			if len(data)+len(value) > maxEvent {
				return fmt.Errorf("an event of more than %d bytes", maxEvent)
			}
			if lines > 0 && data != nil {
				data = append(data, '\n')
			}
			data = append(data, value...)
		default:
			continue
		}
		lines++
	}
	if err := in.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
