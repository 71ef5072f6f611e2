package agent

import (
	"html/template"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// listenPage opens the status page; nil when none is configured.
func (a *Agent) listenPage() (net.Listener, error) {
	if a.cfg.StatusPage == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", a.cfg.StatusPage)
	if err != nil {
		return nil, err
	}
	a.addBound("status_page", l.Addr())
	return &ownListener{l, func(c net.Conn) bool { return a.admit("status_page", c) }}, nil
}

// page is the status page: it shows and changes nothing.
//
// A web page elsewhere can make a browser ask here, and by DNS rebinding even
// read the answer under its own name. So Host must be an address of this
// listener or localhost, and Origin, when there is one, the same place.
func (a *Agent) page() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = pageTemplate.Execute(w, pageData{a.Status(), a.Resources()}) // the browser has gone away: nobody to tell
	})
	m.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Status()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local == nil || !samePlace(r, local.String()) {
			http.Error(w, "wrong Host or Origin (open the address of status_page itself)\n主机名或来源不符（请直接打开 status_page 的地址）", http.StatusForbidden)
			return
		}
		m.ServeHTTP(w, r)
	})
}

// samePlace reports whether r names the address it came to, and was not made
// by a page of another place.
func samePlace(r *http.Request, local string) bool {
	_, port, err := net.SplitHostPort(local)
	if err != nil {
		return false
	}
	ours := func(host string) bool {
		return strings.EqualFold(host, local) || strings.EqualFold(host, "localhost:"+port)
	}
	if !ours(r.Host) {
		return false
	}
	for _, o := range r.Header.Values("Origin") {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "http" || !ours(u.Host) {
			return false
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	}
	return false
}

type pageData struct {
	Status
	List []*Resource
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="zh"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Yumen</title>
<style>body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}table{border-collapse:collapse;width:100%}
td,th{text-align:left;border-bottom:1px solid #ccc;padding:.3em .6em;vertical-align:top}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:1.6em}
.ready{color:#0a7d33}.degraded,.connecting{color:#9a6700}.signed_out,.locked{color:#b42318}small{color:#666}</style></head><body>
<h1>Yumen 代理 · agent {{.AgentID}}</h1>
<p class="{{.State}}"><b>{{.State.Words.ZH}} · {{.State.Words.EN}}</b>{{with .Lock}}{{with .Message}}<br>{{.}}{{end}}{{end}}</p>
<table>
<tr><th>用户 · user</th><td>{{or .UserID "—"}}</td></tr>
<tr><th>设备 · device</th><td>{{.DeviceID}}</td></tr>
<tr><th>网关 · gateway</th><td>{{or .Gateway "—"}} {{.GatewayAddr}}{{with .Carrier}}<br><small>{{.}} {{$.Suite}}，{{$.CarrierWhy}}</small>{{end}}{{with .Fault}}<br><small>{{.}}</small>{{end}}</td></tr>
<tr><th>控制中心 · control center</th><td>{{if .ControlConnected}}已连接 · connected <small>{{.ControlProtocol}} {{.ControlSuite}}</small>{{else}}未连接 · not connected{{end}}</td></tr>
<tr><th>令牌有效期 · token until</th><td>{{with .Expires}}{{.Format "2006-01-02 15:04:05 MST"}}{{else}}—{{end}}</td></tr>
<tr><th>连接 · connections</th><td>{{.Flows}} <small>累计 · opened {{.Opened}}，拒绝 · refused {{.Refused}}</small></td></tr>
<tr><th>本机状态 · posture</th><td>{{with .Posture}}{{or .Name .OS}} {{.Version}} {{.Arch}}<br><small>磁盘加密 · disk encrypted {{.DiskEncrypted}}，防火墙 · firewall {{.Firewall}}</small>{{end}}</td></tr>
<tr><th>本地入口 · local faces</th><td>{{range .Faces}}{{.Kind}} {{.Addr}}<br>{{end}}</td></tr>
</table>
<h2>可访问的应用 · applications</h2>
<table><tr><th>appId</th><th>名称 · name</th><th>地址 · address</th><th>域名 · names</th></tr>
{{range .List}}<tr><td>{{.AppID}}</td><td>{{.AppName}}</td><td>{{.Protocol}} {{.Addr}}</td><td>{{range .Hosts}}{{.}} {{end}}</td></tr>
{{else}}<tr><td colspan="4">无 · none</td></tr>{{end}}</table>
<h2>提醒 · notices</h2>
<table>{{range .Notices}}<tr><td>{{.Time.Format "15:04:05"}}</td><td>{{.Level}}</td><td>{{.AppID}} {{.Target}}</td><td>{{.ZH}}<br>{{.EN}}{{with .Content}}<br><small>{{.}}</small>{{end}}</td></tr>
{{else}}<tr><td>无 · none</td></tr>{{end}}</table>
</body></html>
`))
