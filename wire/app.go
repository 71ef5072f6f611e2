package wire

import (
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// AppIdentity is Table 1 (§6.3.1): an application proves itself to the gateway,
// at least every 60 s.
type AppIdentity struct {
	AppID        string `json:"appId"`
	AppName      string `json:"appName"`
	State        int    `json:"state"` // Online or Offline
	Timestamp    string `json:"timestamp"`
	IP           string `json:"ip"`
	Port         int    `json:"port"`
	AuthMethod   string `json:"authMethod,omitempty"`
	SessionToken string `json:"sessionToken,omitempty"`
	Nonce        string `json:"nonce,omitempty"`
}

var appIdentityTable = table[AppIdentity]{
	number: 1,
	fields: []field[AppIdentity]{
		text("appId", id, func(m *AppIdentity) *string { return &m.AppID }),
		text("appName", upTo(40, hans), func(m *AppIdentity) *string { return &m.AppName }),
		oneOf("state", Offline, Online, func(m *AppIdentity) *int { return &m.State }),
		text("timestamp", moment, func(m *AppIdentity) *string { return &m.Timestamp }),
		text("ip", address, func(m *AppIdentity) *string { return &m.IP }),
		number("port", 0, 65535, func(m *AppIdentity) *int { return &m.Port }),
		text("authMethod", code, func(m *AppIdentity) *string { return &m.AuthMethod }).as(optional),
		text("sessionToken", upTo(0, ans), func(m *AppIdentity) *string { return &m.SessionToken }).as(optional),
		text("nonce", upTo(0, ans), func(m *AppIdentity) *string { return &m.Nonce }).as(optional),
	},
}

// AppIdentityReply is Table 2 (§6.3.1).
type AppIdentityReply struct {
	Code          int    `json:"code"` // Success or Failure
	Result        string `json:"result"`
	AuthKey       string `json:"authKey,omitempty"`
	Expiry        string `json:"expiry,omitempty"`
	Signature     string `json:"signature,omitempty"`
	SignatureType string `json:"signatureType,omitempty"`
}

var appIdentityReplyTable = table[AppIdentityReply]{
	number: 2,
	fields: []field[AppIdentityReply]{
		oneOf("code", Success, Failure, func(m *AppIdentityReply) *int { return &m.Code }),
		text("result", upTo(0, ans), func(m *AppIdentityReply) *string { return &m.Result }),
		text("authKey", upTo(0, ans), func(m *AppIdentityReply) *string { return &m.AuthKey }).as(onSuccess),
		text("expiry", upTo(0, ans), func(m *AppIdentityReply) *string { return &m.Expiry }).as(onSuccess),
		text("signature", upTo(0, ans), func(m *AppIdentityReply) *string { return &m.Signature }).as(onSuccess),
		text("signatureType", upTo(0, ans), func(m *AppIdentityReply) *string { return &m.SignatureType }).as(onSuccess),
	},
	success: func(m *AppIdentityReply) int { return m.Code },
}

// BusinessRequest is Table 3 (§6.3.2): the gateway asks an application for its
// business data. The shape of Data's items is the application's own.
type BusinessRequest struct {
	AppID     string           `json:"appId"`
	KeyType   string           `json:"keyType"`
	Timestamp string           `json:"timestamp"`
	Data      []jsontext.Value `json:"data,omitempty"`
	DataHash  string           `json:"dataHash,omitempty"` // SHA-256 of the JCS form of Data, lower-case hexadecimal
	Remark    string           `json:"remark,omitempty"`
}

var businessRequestTable = table[BusinessRequest]{
	number: 3,
	fields: []field[BusinessRequest]{
		text("appId", id, func(m *BusinessRequest) *string { return &m.AppID }),
		text("keyType", code, func(m *BusinessRequest) *string { return &m.KeyType }),
		text("timestamp", moment, func(m *BusinessRequest) *string { return &m.Timestamp }),
		values("data", func(m *BusinessRequest) *[]jsontext.Value { return &m.Data }),
		text("dataHash", digest, func(m *BusinessRequest) *string { return &m.DataHash }).as(optional),
		text("remark", upTo(0, hans), func(m *BusinessRequest) *string { return &m.Remark }).as(optional),
	},
	extra: checkDataHash,
}

// checkDataHash compares dataHash, if it is given, with what data hashes to.
func checkDataHash(m *BusinessRequest, f *faults) {
	if m.DataHash == "" {
		return
	}
	if want, err := DataHash(m.Data); err != nil || !strings.EqualFold(want, m.DataHash) {
		f.add("dataHash", "not the SHA-256 of data in its RFC 8785 form")
	}
}
