package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// adminHandler is the operator's face: JSON over the 0600 socket. What changes
// something is audited with the caller's uid.
func (g *Gateway) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { adminsock.Reply(w, g.Status()) })
	mux.HandleFunc("GET /sessions", func(w http.ResponseWriter, _ *http.Request) { adminsock.Reply(w, g.access.Sessions()) })
	mux.HandleFunc("GET /tunnels", func(w http.ResponseWriter, _ *http.Request) { adminsock.Reply(w, g.tunnel.Tunnels()) })
	if g.link != nil {
		mux.Handle("GET /outbox", g.link.OutboxHandler())
		mux.Handle("GET /outbox/prove", g.link.OutboxHandler())
	}
	mux.HandleFunc("POST /sessions/cut", g.adminCut)
	mux.HandleFunc("POST /reload", g.adminReload)
	mux.HandleFunc("POST "+takeOverPath, g.adminTakeOver)
	mux.HandleFunc("POST /memory/free", func(w http.ResponseWriter, _ *http.Request) {
		debug.FreeOSMemory() // what is left is held, not garbage
		adminsock.Reply(w, struct{}{})
	})
	mux.HandleFunc("POST /explain", g.adminExplain)
	g.guardAdmin(mux)
	auditors := g.auditHandler()
	mux.Handle("/audit", auditors)
	mux.Handle("/audit/", auditors)
	return mux
}

// CutRequest chooses what `sessions cut` closes. Fields that are set must all
// match; at least one must be set.
type CutRequest struct {
	SessionID string `json:"session_id,omitzero"`
	UserID    string `json:"user_id,omitzero"`
	DeviceID  string `json:"device_id,omitzero"`
	AgentID   string `json:"agent_id,omitzero"`
	AppID     string `json:"app_id,omitzero"`
}

// CutReply says what was closed.
type CutReply struct {
	Flows int           `json:"flows"`
	Took  time.Duration `json:"took_ns"`
}

func (g *Gateway) adminCut(w http.ResponseWriter, r *http.Request) {
	var in CutRequest
	if err := adminsock.Read(r, &in); err != nil {
		adminsock.Refuse(w, http.StatusBadRequest, err)
		return
	}
	sel := access.Selector(in)
	if sel == (access.Selector{}) {
		adminsock.Refuse(w, http.StatusBadRequest, errors.New("cut sessions: choose some by session, user, device, agent or application"))
		return
	}
	start := time.Now()
	g.tell(notice{Cut: &in})
	n := g.access.Cut(sel, reason.CutByOperator)
	g.auditAdmin(r, "sessions cut", fmt.Sprintf("%+v: %d flows", in, n), nil)
	adminsock.Reply(w, CutReply{n, time.Since(start)})
}

func (g *Gateway) adminReload(w http.ResponseWriter, r *http.Request) {
	err := g.Reload()
	g.auditAdmin(r, "reload", "", err)
	if err != nil {
		adminsock.Refuse(w, http.StatusConflict, fmt.Errorf("%w\nthe old configuration stays in force", err))
		return
	}
	adminsock.Reply(w, struct{}{})
}

// ExplainRequest asks what the snapshot in force would decide, and why.
type ExplainRequest struct {
	UserID   string   `json:"user_id"`
	DeviceID string   `json:"device_id,omitzero"` // empty: a browser without a device
	AppID    string   `json:"app_id"`
	Remote   string   `json:"remote_addr,omitzero"`
	Protocol string   `json:"protocol,omitzero"` // tls1.2, tls1.3, tlcp
	Method   string   `json:"method,omitzero"`
	Path     string   `json:"path,omitzero"`
	Level    int      `json:"level,omitzero"`
	Factors  []int    `json:"factors,omitzero"`
	AuthAge  Duration `json:"auth_age,omitzero"`
	Posture  *int     `json:"posture,omitzero"`
	Risk     *int     `json:"risk,omitzero"`
}

// Duration is a time.Duration that is text in JSON.
type Duration time.Duration

// UnmarshalText reads text such as "15m".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// ExplainReply is a decision and the steps that led to it.
type ExplainReply struct {
	Allowed bool   `json:"allowed"`
	Code    string `json:"code"`
	Reason  string `json:"reason"`
	Trace   string `json:"trace"`
}

func (g *Gateway) adminExplain(w http.ResponseWriter, r *http.Request) {
	var in ExplainRequest
	if err := adminsock.Read(r, &in); err != nil {
		adminsock.Refuse(w, http.StatusBadRequest, err)
		return
	}
	f := policy.Facts{
		SessionID: "explain", UserID: in.UserID, DeviceID: in.DeviceID, Browser: in.DeviceID == "",
		Level: in.Level, Factors: policy.FactorsOf(in.Factors...), Posture: score(in.Posture), Risk: score(in.Risk),
	}
	if in.AuthAge != 0 {
		f.AuthTime = g.now().Add(-time.Duration(in.AuthAge))
	}
	req := policy.Request{Protocol: policy.ParseProtocol(in.Protocol), Method: in.Method, Path: in.Path}
	if in.Remote != "" {
		a, err := netip.ParseAddr(in.Remote)
		if err != nil {
			adminsock.Refuse(w, http.StatusBadRequest, fmt.Errorf("remote_addr: %w", err))
			return
		}
		req.Remote = a
	}
	if a := g.site.Load().apps.ID(in.AppID); a != nil && in.Path != "" && a.Public(in.Path) {
		adminsock.Reply(w, ExplainReply{true, reason.OK.Code(), reason.OK.String(), fmt.Sprintf("public: %s of %s is open to everybody, without sign-in, grant or policy (public_paths in gateway.yaml)\n", in.Path, a.ID)})
		return
	}
	t := g.access.Explain(f, in.AppID, req)
	adminsock.Reply(w, ExplainReply{t.Decision.Reason == reason.OK, t.Decision.Reason.Code(), t.Decision.Reason.String(), t.String()})
}

func (g *Gateway) auditAdmin(r *http.Request, verb, detail string, err error) {
	rec := &audit.Record{Time: g.now(), Kind: audit.Admin, GatewayID: g.id, UID: adminsock.UID(r), Object: verb, Remote: "unix", Allowed: err == nil, Result: "ok", Detail: detail}
	if err != nil {
		rec.Result, rec.Detail = "failed", err.Error()
	}
	g.audit.Write(rec)
}
