package control

import (
	"maps"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/internal/reason"
)

// headerExt is header.ext of a message (Q31).
type headerExt map[string]jsontext.Value

// with returns e with one more field; v is marshalled.
func (e headerExt) with(name string, v any) headerExt {
	raw, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		panic(err) // plain structs and strings
	}
	out := headerExt{name: raw}
	maps.Copy(out, e)
	return out
}

// text returns the string in field name of a peer's header, "" when there is
// none or it is no short string.
func extText(e map[string]jsontext.Value, name string) string {
	var v string
	if err := json.Unmarshal(e[name], &v); err != nil || len(v) > 64 {
		return ""
	}
	return v
}

// packed is an answer as the memory of repeated messages keeps it.
type packed struct {
	Type   string         `json:"t"`
	Body   jsontext.Value `json:"b"`
	Reason reason.Reason  `json:"r"`
	Ext    headerExt      `json:"e,omitempty"`
	User   string         `json:"u,omitempty"`
}

func (a answer) pack() []byte {
	raw, err := json.Marshal(packed{a.msgType, a.body, a.reason, a.ext, a.user})
	if err != nil {
		panic(err) // the body is JSON that we made
	}
	return raw
}

func unpack(raw []byte) answer {
	var p packed
	if err := json.Unmarshal(raw, &p); err != nil {
		return refuse("T5", reason.InternalError, "")
	}
	return answer{msgType: p.Type, body: p.Body, reason: p.Reason, ext: p.Ext, user: p.User}
}
