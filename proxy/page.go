package proxy

import (
	"encoding/json"
	"html/template"
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// pageHeader are the fields of every page of the gateway's own.
var pageHeader = exchange.Header{
	{Name: "Cache-Control", Value: "no-store"},
	{Name: "Content-Security-Policy", Value: "default-src 'none'; style-src 'sha256-Rk42u3zD644ua6wUHP0O1o0HnaRmV+6boQjTZl68P/s='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
	{Name: "X-Content-Type-Options", Value: "nosniff"},
	{Name: "X-Frame-Options", Value: "DENY"},
	{Name: "Referrer-Policy", Value: "no-referrer"},
}

// PageHeader returns the fields that every page of the gateway's own carries.
func PageHeader() Header { return append(Header(nil), pageHeader...) }

type pageText struct {
	Lang, Text, Advice, Message     string
	Title, CodeL, RequestL, PolicyL string
}

type pageData struct {
	Code, RequestID, PolicyID string
	Parts                     []pageText
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="{{(index .Parts 0).Lang}}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{{.Code}} {{(index .Parts 0).Title}}</title><style>` + pageStyle + `</style></head>
<body><main>
{{range .Parts}}<section lang="{{.Lang}}"><h1>{{.Title}}</h1>
<p>{{.Text}}{{if .Message}} <em>{{.Message}}</em>{{end}}</p>{{if .Advice}}
<p>{{.Advice}}</p>{{end}}
<dl><dt>{{.CodeL}}</dt><dd>{{$.Code}}</dd><dt>{{.RequestL}}</dt><dd>{{$.RequestID}}</dd>{{if $.PolicyID}}<dt>{{.PolicyL}}</dt><dd>{{$.PolicyID}}</dd>{{end}}</dl>
</section>
{{end}}</main></body></html>
`))

const pageStyle = `body{font:16px/1.6 system-ui,sans-serif;margin:0;background:#f4f5f7;color:#1c2430}main{max-width:40rem;margin:10vh auto;padding:0 1rem}section{background:#fff;border-radius:.5rem;padding:1rem 1.5rem;margin:1rem 0}h1{font-size:1.25rem}dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;color:#556}dd{margin:0;font-family:monospace}`

// page answers a refusal: a page in both languages for people, JSON for
// programs. A stranger is told the public reason alone.
func (p *Proxy) page(x *Exchange, d *deniedError) {
	why := d.why.Public()
	first, second := languages(x.Header.Get("Accept-Language"))
	h := readable(x, PageHeader())
	if why == reason.MethodRefused {
		h.Add("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	}
	if why.Status() == 503 || why.Status() == 429 {
		h.Add("Retry-After", "5")
	}
	if wantsJSON(x) {
		body, _ := json.Marshal(struct { // strings alone: cannot fail
			Code      string `json:"code"`
			Reason    string `json:"reason"`
			Text      string `json:"text"`
			Message   string `json:"message,omitempty"`
			PolicyID  string `json:"policy_id,omitempty"`
			RequestID string `json:"request_id"`
		}{why.Code(), why.String(), why.Text(first), d.message, d.policyID, x.ID})
		h.Add("Content-Type", "application/json; charset=utf-8")
		x.Respond(clientStatus(why), h, append(body, '\n'))
		return
	}
	data := pageData{Code: why.Code(), RequestID: x.ID, PolicyID: d.policyID}
	for _, l := range []reason.Lang{first, second} {
		t := pageText{Lang: "en", Text: why.Text(l), Advice: why.Advice(l), Message: d.message,
			Title: "Access was not possible", CodeL: "Code", RequestL: "Request", PolicyL: "Policy"}
		if l == reason.Chinese {
			t.Lang, t.Title, t.CodeL, t.RequestL, t.PolicyL = "zh-CN", "无法访问", "代码", "请求编号", "策略"
		}
		data.Parts = append(data.Parts, t)
	}
	var b strings.Builder
	_ = pageTemplate.Execute(&b, data) // a strings.Builder takes everything
	h.Add("Content-Type", "text/html; charset=utf-8")
	h.Add("Content-Language", data.Parts[0].Lang+", "+data.Parts[1].Lang)
	x.Respond(clientStatus(why), h, []byte(b.String()))
}

// clientStatus keeps to registered statuses.
func clientStatus(r reason.Reason) int {
	if s := r.Status(); s != 499 {
		return s
	}
	return 400
}

// wantsJSON tells programs from people. A browser's navigation asks for HTML.
func wantsJSON(x *Exchange) bool {
	switch mode := x.Header.Get("Sec-Fetch-Mode"); {
	case mode == "navigate":
		return false
	case mode != "":
		return true
	}
	if strings.EqualFold(x.Header.Get("X-Requested-With"), "XMLHttpRequest") || x.Header.Has("Upgrade") {
		return true
	}
	return !strings.Contains(strings.Join(x.Header.Values("Accept"), ","), "text/html")
}

// WantsJSON reports whether the client of x is a program (401 and JSON) rather
// than a person (a page, a redirect).
func WantsJSON(x *Exchange) bool { return wantsJSON(x) }

// languages orders the two languages by Accept-Language; Chinese leads when
// the client has no preference.
func languages(accept string) (first, second reason.Lang) {
	zh, en := -1.0, -1.0
	for part := range strings.SplitSeq(accept, ",") {
		tag, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				q = f
			}
		}
		switch tag, _, _ := strings.Cut(strings.ToLower(tag), "-"); tag {
		case "zh":
			zh = max(zh, q)
		case "en":
			en = max(en, q)
		}
	}
	if en > zh || zh < 0 && en < 0 && accept != "" && accept != "*" {
		return reason.English, reason.Chinese
	}
	return reason.Chinese, reason.English
}
