package demo

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// backend is the demo's own HTTP application. It knows nothing of Yumen but the
// fields that the gateway adds.
func backend(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		e := html.EscapeString
		fmt.Fprintf(w, `<!doctype html><meta charset="utf-8"><title>%[1]s</title><h1>%[1]s</h1>
<p>您好 <b>%[2]s</b>（设备 %[3]s）。<span lang="en">Hello %[2]s (device %[3]s).</span></p>
<p><a href="/download">下载 download</a> · <a href="/events">事件流 events</a> · <a href="/.yumen/logout">退出 sign out</a></p>
`, e(name), e(r.Header.Get("X-Yumen-User")), e(r.Header.Get("X-Yumen-Device")))
	})
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "user %s device %s session %s\n", r.Header.Get("X-Yumen-User"), r.Header.Get("X-Yumen-Device"), r.Header.Get("X-Yumen-Session"))
	})
	mux.HandleFunc("GET /download", download)
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", i, time.Now().Format(time.RFC3339)); err != nil {
				return
			}
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	return mux
}

// download sends ?bytes=N, by default without end, at ?rate= bytes a second.
func download(w http.ResponseWriter, r *http.Request) {
	left, rate := int64(1)<<50, int64(8<<20)
	for name, p := range map[string]*int64{"bytes": &left, "rate": &rate} {
		if s := r.FormValue(name); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n <= 0 {
				http.Error(w, name+": a number above 0 is needed", http.StatusBadRequest)
				return
			}
			*p = n
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	block := make([]byte, max(rate/100, 1))
	for left > 0 {
		n, err := w.Write(block[:min(left, int64(len(block)))])
		if err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		left -= int64(n)
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// serveHTTP serves h on address until ctx is done.
func serveHTTP(ctx context.Context, address string, h http.Handler) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve demo application: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveEcho answers every byte with itself until ctx is done.
func serveEcho(ctx context.Context, address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve demo application: %w", err)
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conns.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			_, _ = io.Copy(c, c) // an end of either side is the end of the echo
		})
	}
}

// hostPort returns the address of a backend URL.
func hostPort(backend string) string {
	u, err := url.Parse(backend)
	if err != nil {
		return ""
	}
	if u.Port() == "" {
		port := "80"
		if u.Scheme == "https" {
			port = "443"
		}
		return net.JoinHostPort(u.Hostname(), port)
	}
	return u.Host
}
