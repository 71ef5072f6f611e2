package testbed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/websocket"
)

// WebApp is an application in the test's own process. It records what reaches
// it.
type WebApp struct {
	URL string

	mu   sync.Mutex
	seen []Seen // guarded by mu
}

// Seen is a request that reached an application.
type Seen struct {
	Method, Path string
	Header       http.Header
}

// NewWebApp starts an application on a loopback address.
func NewWebApp(o Owner, v6 bool) *WebApp {
	o.Helper()
	at := Loopback(v6, Port(o))
	ln, err := net.Listen("tcp", at)
	if err != nil {
		o.Fatalf("%v", err)
	}
	a := &WebApp{URL: "http://" + at}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body) // what came is counted, whatever ended it
		fmt.Fprintf(w, "%s %s %d\nuser %s device %s\n", r.Method, r.URL.Path, n, r.Header.Get("X-Yumen-User"), r.Header.Get("X-Yumen-Device"))
	})
	mux.HandleFunc("/endless", endless)
	mux.HandleFunc("/endless/slow", endless) // the audit names paths: a slow client is known by its own
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.FormValue("for"))
		select {
		case <-time.After(d):
			io.WriteString(w, "held\n")
		case <-r.Context().Done():
		}
	})
	ws := websocket.Server{Handler: echoMessages} // no check of the origin: a program speaks
	mux.Handle("/ws", ws)
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		if len(a.seen) < 10000 {
			a.seen = append(a.seen, Seen{r.Method, r.URL.Path, r.Header.Clone()})
		}
		a.mu.Unlock()
		mux.ServeHTTP(w, r)
	})}
	ctx, cancel := context.WithCancel(context.Background())
	s.BaseContext = func(net.Listener) context.Context { return ctx }
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }() // ends by Close
	o.Cleanup(func() { cancel(); s.Close(); <-done })
	return a
}

// Seen returns the requests that reached the application.
func (a *WebApp) Seen() []Seen {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Seen(nil), a.seen...)
}

// endless sends as fast as it is taken, or at ?rate= bytes a second.
func endless(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	rate, _ := strconv.Atoi(r.FormValue("rate"))
	block := make([]byte, 64<<10)
	var tick <-chan time.Time
	if rate > 0 {
		t := time.NewTicker(10 * time.Millisecond)
		defer t.Stop()
		tick, block = t.C, make([]byte, max(rate/100, 1))
	}
	for {
		if _, err := w.Write(block); err != nil {
			return
		}
		if tick == nil {
			continue
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick:
		case <-r.Context().Done():
			return
		}
	}
}

// events sends an event every 20 ms.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

func echoMessages(c *websocket.Conn) {
	defer c.Close()
	for {
		var b []byte
		if websocket.Message.Receive(c, &b) != nil || websocket.Message.Send(c, b) != nil {
			return
		}
	}
}

// TCPApp is an application that echoes, or, to a connection whose first byte is
// 'f', sends without end.
type TCPApp struct {
	Address string

	mu    sync.Mutex
	conns int // guarded by mu
}

// Connections returns how many connections reached the application.
func (a *TCPApp) Connections() int { a.mu.Lock(); defer a.mu.Unlock(); return a.conns }

// NewTCPApp starts one.
func NewTCPApp(o Owner, v6 bool) *TCPApp {
	o.Helper()
	a := &TCPApp{Address: Loopback(v6, Port(o))}
	ln, err := net.Listen("tcp", a.Address)
	if err != nil {
		o.Fatalf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			a.mu.Lock()
			a.conns++
			a.mu.Unlock()
			all.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				first := make([]byte, 1)
				if _, err := io.ReadFull(c, first); err != nil {
					return
				}
				if first[0] == 'f' {
					for block := make([]byte, 64<<10); err == nil; {
						_, err = c.Write(block)
					}
					return
				}
				if _, err := c.Write(first); err == nil {
					_, _ = io.Copy(c, c) // an end of either side is the end of the echo
				}
			})
		}
	})
	o.Cleanup(func() { cancel(); ln.Close(); all.Wait() })
	return a
}

// NewUDPApp starts an application that echoes datagrams, and returns its
// address.
func NewUDPApp(o Owner, v6 bool) string {
	o.Helper()
	at := Loopback(v6, Port(o))
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		o.Fatalf("%v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from) // a datagram may be lost
		}
	}()
	o.Cleanup(func() { pc.Close(); <-done })
	return at
}
