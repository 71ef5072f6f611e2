package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/agent/localuser"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

const maxAsk = 64 << 10 // bytes of one request of a verb

// LoginRequest is what `yumen agent login` sends over the agent's socket.
type LoginRequest struct {
	UserID  string        `json:"userId"`
	Factors []wire.Factor `json:"factors"`
}

// Answer is what a verb that does something gets.
type Answer struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // code such as YM-202
	Words
}

// Why explains what would happen to a connection to an application now.
type Why struct {
	AppID     string      `json:"appId"`
	Allowed   bool        `json:"allowed"`
	Reason    string      `json:"reason,omitempty"`
	Resources []*Resource `json:"resources,omitempty"`
	Last      *Notice     `json:"last,omitempty"` // the newest notice about it
	Words
}

// listenVerbs opens the unix socket of the verbs, mode 0600.
func (a *Agent) listenVerbs() (net.Listener, error) {
	l, err := adminsock.Listen(a.cfg.Socket)
	if err != nil {
		return nil, err
	}
	return &ownListener{l, func(c net.Conn) bool { return a.ownSocket(c) }}, nil
}

// ownSocket reports whether the caller on the unix socket is our user: the
// mode already says so, the kernel confirms it where it can.
func (a *Agent) ownSocket(c net.Conn) bool {
	uid, err := localuser.UnixPeer(c)
	return errors.Is(err, localuser.ErrUnsupported) || err == nil && uid == a.uid
}

// ownListener gives out only connections of our user.
type ownListener struct {
	net.Listener
	ours func(net.Conn) bool
}

// Accept waits for a connection of our user; others are closed unread.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.ours(c) {
			return c, err
		}
		reset(c)
	}
}

// serveHTTP serves h on l until ctx ends.
func (a *Agent) serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 40 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 16 << 10, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		srv.Close()
	}()
	err := srv.Serve(l)
	if ctx.Err() != nil {
		<-done
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// verbs is the handler behind the unix socket.
func (a *Agent) verbs() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Status()) })
	m.HandleFunc("GET /v1/resources", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Resources()) })
	m.HandleFunc("GET /v1/why", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, a.Why(r.Context(), r.URL.Query().Get("app")))
	})
	if l, ok := a.link.(*ctlclient.Agent); ok {
		m.Handle("GET /outbox", l.OutboxHandler())
		m.Handle("GET /outbox/prove", l.OutboxHandler())
	}
	m.HandleFunc("POST /v1/login", a.handleLogin)
	m.HandleFunc("POST /v1/logout", func(w http.ResponseWriter, _ *http.Request) {
		a.Logout()
		writeJSON(w, Answer{OK: true, Words: Words{EN: "signed out", ZH: "已退出登录"}})
	})
	m.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, Answer{OK: true, Words: Words{EN: "the agent ends", ZH: "代理正在退出"}})
		_ = http.NewResponseController(w).Flush() // a caller that has gone away has its will, too
		a.stop()
	})
	return m
}

func (a *Agent) handleLogin(w http.ResponseWriter, r *http.Request) {
	var q LoginRequest
	if err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxAsk), &q, json.RejectUnknownMembers(true)); err != nil {
		http.Error(w, "malformed request", http.StatusBadRequest) // the cause may quote a password
		return
	}
	if err := a.Login(r.Context(), q.UserID, q.Factors); err != nil {
		why, words := explainError(err)
		writeJSON(w, Answer{Reason: why.Code(), Words: words})
		return
	}
	s := a.Status()
	writeJSON(w, Answer{OK: true, Words: Words{
		EN: fmt.Sprintf("signed in as %s, %d resources", s.UserID, s.Resources),
		ZH: fmt.Sprintf("已登录为 %s，共 %d 个资源", s.UserID, s.Resources),
	}})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.MarshalWrite(w, v, json.Deterministic(true)) // the caller has gone away: nobody to tell
}

// Resources returns what may be reached now (Tables 19 and 20).
func (a *Agent) Resources() []*Resource {
	t := a.currentRoutes()
	if t == nil {
		return []*Resource{}
	}
	return t.list
}

// Why asks the gateway for a flow to the application, gives it back at once,
// and words the answer. It is one real access request (Table 12), audited as
// such.
func (a *Agent) Why(ctx context.Context, appID string) Why {
	w := Why{AppID: appID}
	if n, ok := a.notices.about(appID); ok {
		w.Last = &n
	}
	w.Resources = a.currentRoutes().app(appID)
	var first *Resource
	f, err := a.open(ctx, nil, func(t *routes) (*Resource, reason.Reason) {
		rs := t.app(appID)
		if len(rs) == 0 {
			return nil, reason.AppNotGranted
		}
		first = rs[0]
		return first, reason.OK
	})
	if err != nil {
		r, words := explainError(err)
		w.Reason, w.Words = r.Code(), words
		return w
	}
	a.drop(f)
	w.Allowed = true
	w.Words = Words{EN: fmt.Sprintf("allowed: %s (%s) at %s", appID, first.AppName, first.Addr), ZH: fmt.Sprintf("允许：%s（%s），地址 %s", appID, first.AppName, first.Addr)}
	return w
}
