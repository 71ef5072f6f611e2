package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// errNoChaos refuses a plan at a control center that does not allow one.
var errNoChaos = errors.New("chaos is not allowed here (start the control center with --allow-chaos; never where people work)")

// tables names the table, or the kind, that a path of the links carries.
var tables = map[string]string{
	gatewayBase + "/identity": "T4", gatewayBase + "/lists/grants": "T6", gatewayBase + "/lists/policies": "T8", gatewayBase + "/events": "events",
	gatewayBase + "/acks": wire.TypeAck, gatewayBase + "/logouts": wire.TypeLogout, gatewayBase + "/status": "T10", gatewayBase + "/alerts": "T11", gatewayBase + "/subjects": wire.TypeSubject,
	gatewayBase + "/outbox": wire.TypeOutbox, agentBase + "/outbox": wire.TypeOutbox,
	agentBase + "/authentication": "T16", agentBase + "/resources": "T19", agentBase + "/status": "T21", agentBase + "/alerts": "T22", enrolPath: "enrol",
}

// atOpen are the faults that a push stream meets when it is opened.
var atOpen = map[string]bool{"delay": true, "drop": true, "error": true, "stall": true, "redirect": true, "json": true}

// wrap puts the plan between the links and h.
func (c *chaos) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimSuffix(r.URL.Path, "/")
		rule, over := c.choose(tables[path], r.URL.Path)
		if tables[path] == "events" && !atOpen[rule.Fault] {
			rule.Fault = "" // each write has its own turn
		}
		wait := func(d time.Duration, or <-chan struct{}) {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-t.C:
			case <-or:
			case <-over:
			case <-r.Context().Done():
			}
		}
		switch rule.Fault {
		case "":
			h.ServeHTTP(c.watched(w, r), r)
		case "delay":
			body := c.read(r) // so that the wait is the control center's, not the sender's
			wait(time.Duration(rule.For), nil)
			r.Body = body
			h.ServeHTTP(c.watched(w, r), r)
		case "drop":
			panic(http.ErrAbortHandler)
		case "drop-answer":
			h.ServeHTTP(newKept(w), r)
			panic(http.ErrAbortHandler)
		case "duplicate":
			raw, err := io.ReadAll(io.LimitReader(r.Body, wire.MaxMessage+1))
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			if r.Method == http.MethodPost {
				r.Body = io.NopCloser(bytes.NewReader(raw))
				h.ServeHTTP(newKept(w), r)
			}
			r.Body = io.NopCloser(bytes.NewReader(raw))
			h.ServeHTTP(w, r)
		case "reorder":
			next := c.overtaken()
			body := c.read(r)
			wait(time.Duration(rule.For), next)
			r.Body = body
			h.ServeHTTP(w, r)
			return // it lets no other go
		case "corrupt":
			h.ServeHTTP(&flipped{ResponseWriter: w}, r)
		case "error":
			w.WriteHeader(http.StatusInternalServerError)
		case "stall":
			c.read(r)
			wait(time.Duration(rule.For), nil)
			panic(http.ErrAbortHandler)
		case "redirect":
			w.Header().Set("Location", "https://redirected.invalid"+path)
			w.WriteHeader(http.StatusFound)
		case "json":
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"code":200,"result":"OK"}`)
		case "signature":
			k := newKept(w)
			h.ServeHTTP(k, r)
			k.forge()
			k.send()
		}
		c.passed()
	})
}

// read takes a message in, so that nothing of it waits in the kernel.
func (c *chaos) read(r *http.Request) io.ReadCloser {
	raw, err := io.ReadAll(io.LimitReader(r.Body, wire.MaxMessage+1))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return io.NopCloser(bytes.NewReader(raw))
}

// watched lets a plan reach a push stream that was open before it.
func (c *chaos) watched(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	if r.URL.Path != gatewayBase+"/events" {
		return w
	}
	return &watched{ResponseWriter: w, c: c, r: r}
}

// watched is the answer of a push stream under chaos: each write may meet a
// fault.
type watched struct {
	http.ResponseWriter
	c *chaos
	r *http.Request
}

// Unwrap is for [http.ResponseController].
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *watched) Write(b []byte) (int, error) {
	rule, over := w.c.choose("events", w.r.URL.Path)
	hold := time.Duration(0)
	switch rule.Fault {
	case "delay", "stall":
		hold = time.Duration(rule.For)
	case "drop-answer", "reorder": // an event is lost on the way
		return len(b), nil
	case "drop", "error", "redirect", "json":
		panic(http.ErrAbortHandler)
	case "duplicate":
		if _, err := w.ResponseWriter.Write(b); err != nil {
			return 0, err
		}
	case "corrupt", "signature":
		b = bytes.Clone(b)
		if i := bytes.LastIndex(b, []byte(`"signature":"`)); i >= 0 {
			b[i+len(`"signature":"`)] ^= 1
		} else {
			b[len(b)/2] ^= 1
		}
	}
	if hold > 0 {
		t := time.NewTimer(hold)
		defer t.Stop()
		select {
		case <-t.C:
		case <-over:
		case <-w.r.Context().Done():
		}
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	return w.ResponseWriter.Write(b)
}

// flipped flips one bit of the first write.
type flipped struct {
	http.ResponseWriter
	done bool
}

// Unwrap is for [http.ResponseController].
func (f *flipped) Unwrap() http.ResponseWriter { return f.ResponseWriter }

func (f *flipped) Write(b []byte) (int, error) {
	if !f.done && len(b) > 0 {
		f.done = true
		b = bytes.Clone(b)
		b[len(b)/2] ^= 4
	}
	return f.ResponseWriter.Write(b)
}

// kept is an answer that is held back.
type kept struct {
	to     http.ResponseWriter
	head   http.Header
	status int
	body   bytes.Buffer
}

func newKept(to http.ResponseWriter) *kept { return &kept{to: to, head: to.Header().Clone()} }

// Header, Write and WriteHeader implement [http.ResponseWriter].
func (k *kept) Header() http.Header { return k.head }

func (k *kept) WriteHeader(status int) {
	if k.status == 0 {
		k.status = status
	}
}

func (k *kept) Write(b []byte) (int, error) { return k.body.Write(b) }

// Unwrap is for [http.ResponseController]: deadlines are the connection's.
func (k *kept) Unwrap() http.ResponseWriter { return k.to }

// FlushError keeps a stream's flush from reaching the connection.
func (k *kept) FlushError() error { return nil }

// forge makes the first signature of the answer wrong: it stays base64 of the
// same length, over a message that looks right.
func (k *kept) forge() {
	b := k.body.Bytes()
	const field = `"signature":"`
	i := bytes.Index(b, []byte(field))
	if i < 0 {
		return
	}
	at := i + len(field) + 40 // behind the lengths of its DER
	if at < len(b) {
		if b[at] == 'A' {
			b[at] = 'B'
		} else {
			b[at] = 'A'
		}
	}
}

func (k *kept) send() {
	for name, v := range k.head {
		k.to.Header()[name] = v
	}
	if k.status != 0 {
		k.to.WriteHeader(k.status)
	}
	_, _ = k.to.Write(k.body.Bytes()) // a peer that went away
}

// chaosVerbs adds the verbs of chaos to the admin socket.
func (s *Server) chaosVerbs(read, write func(string, func(*http.Request) (any, error))) {
	read("GET /v1/chaos", func(*http.Request) (any, error) {
		if s.chaos == nil {
			return ChaosState{}, nil
		}
		return s.chaos.state(), nil
	})
	write("PUT /v1/chaos", func(r *http.Request) (any, error) {
		if s.chaos == nil {
			return nil, errNoChaos
		}
		var p ChaosPlan
		d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err != nil {
			return nil, errors.Join(errors.New("read plan"), err)
		}
		if err := p.validate(); err != nil {
			return nil, err
		}
		s.chaos.set(&p)
		s.chaos.warn("on")
		return s.chaos.state(), nil
	})
	write("DELETE /v1/chaos", func(*http.Request) (any, error) {
		if s.chaos == nil {
			return nil, errNoChaos
		}
		if s.chaos.off() {
			s.chaos.warn("off")
		}
		return s.chaos.state(), nil
	})
}
