package wire

import "github.com/go-json-experiment/json/jsontext"

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

// AppIdentityReply is Table 2 (§6.3.1).
type AppIdentityReply struct {
	Code          int    `json:"code"` // Success or Failure
	Result        string `json:"result"`
	AuthKey       string `json:"authKey,omitempty"`
	Expiry        string `json:"expiry,omitempty"`
	Signature     string `json:"signature,omitempty"`
	SignatureType string `json:"signatureType,omitempty"`
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
