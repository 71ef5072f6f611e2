// Package reason is the one enumeration of why Yumen refused, cut or dropped
// something. The same value is the log field, the metric label, the audit
// result, the alert's cause, the code on the deny page, the result of Table 13
// (§8.3.1) and, as a number, the constant of the guard's C header.
//
// Numbers are stable: a number is never given another meaning, and a reason
// that is no longer used keeps its line in the catalogue.
package reason

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Reason says why. The zero value, OK, means that nothing was refused.
type Reason uint16

// 1xx: the connection, before anybody is known.
const (
	OK Reason = 0

	AcceptLimit      Reason = 101
	SourceLimit      Reason = 102
	HelloTimeout     Reason = 103
	HelloMalformed   Reason = 104
	PlainHTTP        Reason = 105
	TLSVersion       Reason = 106
	HandshakeFailed  Reason = 107
	ClientCertAbsent Reason = 108
	ClientCertBad    Reason = 109
	ClientCertGone   Reason = 110
	SNIUnknown       Reason = 111
	HandshakeLimit   Reason = 112
	ProtocolRefused  Reason = 113
	IdleTimeout      Reason = 114
	ALPNRefused      Reason = 115
	TLSRefused       Reason = 116
	TLCPRefused      Reason = 117
	TLCPPreferred    Reason = 118
	NoCommonSuite    Reason = 119
	ClientCertUsage  Reason = 120
	ClientCertIssuer Reason = 121
	PeerAlert        Reason = 122
	ProxyHeader      Reason = 123
)

// 2xx: who is there.
const (
	LoginRequired    Reason = 201
	LoginFailed      Reason = 202
	SessionExpired   Reason = 203
	SessionRevoked   Reason = 204
	SessionUnknown   Reason = 205
	SubjectUnmapped  Reason = 206
	DeviceUnknown    Reason = 207
	DeviceMismatch   Reason = 208
	UserMismatch     Reason = 209
	TokenUnknown     Reason = 210
	TokenExpired     Reason = 211
	TokenOtherDevice Reason = 212
	TokenGuessLimit  Reason = 213
	AgentMismatch    Reason = 214
	LoggedOut        Reason = 215
	SessionLimit     Reason = 216
	CookieInvalid    Reason = 217
	RenewalMissed    Reason = 218
	Locked           Reason = 219
	CutByOperator    Reason = 220
	LoginLimit       Reason = 221
	FactorRefused    Reason = 222
	BearerInvalid    Reason = 223
)

// 3xx: what the access grant list (Table 7) says.
const (
	NoGrant        Reason = 301
	GrantExpired   Reason = 302
	AppNotGranted  Reason = 303
	GrantRevoked   Reason = 304
	BrowserRefused Reason = 305
	ListExpired    Reason = 306
	NoList         Reason = 307
	ListStale      Reason = 308
)

// 4xx: what a policy (Table 9) says.
const (
	PolicyIPAllow     Reason = 401
	PolicyIPDeny      Reason = 402
	PolicyTime        Reason = 403
	PolicyPosture     Reason = 404
	PolicyAuthAge     Reason = 405
	PolicyMFA         Reason = 406
	PolicyLevel       Reason = 407
	PolicyRate        Reason = 408
	PolicyMaxConn     Reason = 409
	PolicyGeo         Reason = 410
	PolicyApp         Reason = 411
	PolicyRisk        Reason = 412
	PolicyTLS         Reason = 413
	PolicyUnknownType Reason = 414
	PolicyInvalid     Reason = 415
	PolicyRef         Reason = 416
)

// 5xx: the application, the request for it and the way to it.
const (
	AppUnknown          Reason = 501
	AppOffline          Reason = 502
	UpstreamUnreachable Reason = 503
	UpstreamTimeout     Reason = 504
	UpstreamBadResponse Reason = 505
	AddressRefused      Reason = 506
	HostUnknown         Reason = 507
	RequestMalformed    Reason = 508
	PathAmbiguous       Reason = 509
	HostMismatch        Reason = 510
	HeaderRefused       Reason = 511
	MethodRefused       Reason = 512
	UpgradeRefused      Reason = 513
	BodyTooLarge        Reason = 514
	HeaderTooLarge      Reason = 515
	BodyTooSlow         Reason = 516
	LoopDetected        Reason = 517
	ClientGone          Reason = 518
	AppBusy             Reason = 519
)

// 6xx: messages and lists of the standard's links.
const (
	MessageMalformed  Reason = 601
	MessageSignature  Reason = 602
	MessageReceiver   Reason = 603
	MessageSkew       Reason = 604
	MessageConflict   Reason = 605
	MessageAlgorithm  Reason = 606
	MessageSealed     Reason = 607
	ListOlder         Reason = 608
	ListOtherReceiver Reason = 609
	ListSigner        Reason = 610
	ListIncomplete    Reason = 611
	ListBadRow        Reason = 612
	MessageInvalid    Reason = 613
	NotAuthenticated  Reason = 614
	MessageTooLarge   Reason = 615
	EnrolCode         Reason = 616
	MessageSender     Reason = 617
)

// 7xx: tunnels and flows.
const (
	TunnelLimit     Reason = 701
	FlowLimit       Reason = 702
	FrameMalformed  Reason = 703
	TunnelClosed    Reason = 704
	BudgetExceeded  Reason = 705
	DestinationRule Reason = 706
	PeerTimeout     Reason = 707
	FrameRate       Reason = 708
	LocalUser       Reason = 709
)

// 8xx: the gateway itself.
const (
	Shutdown      Reason = 801
	Reload        Reason = 802
	InternalError Reason = 803
	Overload      Reason = 804
)

// 9xx: the guard, before any connection. The numbers are those of bpf/src/guard.h.
const (
	GuardMalformed     Reason = 901
	GuardLink          Reason = 902
	GuardProtocol      Reason = 903
	GuardFragment      Reason = 904
	GuardExtension     Reason = 905
	GuardSource        Reason = 906
	GuardUnauthorized  Reason = 907
	GuardDenied        Reason = 908
	GuardRate          Reason = 909
	GuardICMPRate      Reason = 910
	GuardICMPType      Reason = 911
	GuardTCPFlags      Reason = 912
	GuardKnock         Reason = 913
	GuardKnockLost     Reason = 914
	GuardTicketUnknown Reason = 915
	GuardTicketExpired Reason = 916
	GuardTicketPort    Reason = 917
	GuardTicketRate    Reason = 918
	GuardTokenForged   Reason = 919
	GuardTokenReplayed Reason = 920
	GuardKnockRefused  Reason = 921
)

// String returns the reason's name in lower snake case: the metric label and
// the log field.
func (r Reason) String() string {
	if e, ok := catalogue[r]; ok {
		return e.name
	}
	return fmt.Sprintf("reason_%d", uint16(r))
}

// Code returns the reason as users quote it, such as "YM-303".
func (r Reason) Code() string { return fmt.Sprintf("YM-%03d", uint16(r)) }

// Public returns the reason that a stranger may be told in r's place. Whether
// an application exists, or a token belongs to another device, is for the log
// alone (M78).
func (r Reason) Public() Reason {
	switch r {
	case AppUnknown:
		return AppNotGranted
	case TokenOtherDevice:
		return TokenUnknown
	}
	return r
}

// Result returns the text of a reply's result field (Tables 2, 5, 13 and 18):
// letters, digits and symbols only, as the standard demands.
func (r Reason) Result() string {
	r = r.Public()
	return r.Code() + " " + strings.ToUpper(r.String()) + ": " + r.Text(English)
}

// Status returns the HTTP status that answers a request refused for r.
func (r Reason) Status() int {
	if e, ok := catalogue[r]; ok && e.status != 0 {
		return e.status
	}
	return 403
}

// Lang selects one of the two languages that Yumen speaks to people.
type Lang uint8

// The two languages.
const (
	English Lang = iota
	Chinese
)

// Text returns one sentence for the person who was refused.
func (r Reason) Text(l Lang) string {
	e := catalogue[r]
	if l == Chinese {
		return e.zh
	}
	return e.en
}

// Advice returns what to do next, or "" when there is nothing to do.
func (r Reason) Advice(l Lang) string {
	e := catalogue[r]
	if l == Chinese {
		return e.adviceZH
	}
	return e.adviceEN
}

// Parse finds a reason by its number ("303"), code ("YM-303") or name.
func Parse(s string) (Reason, error) {
	k := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(s)), "YM-")
	n, err := strconv.ParseUint(k, 10, 16)
	for r, e := range catalogue {
		if strings.EqualFold(e.name, k) || err == nil && r == Reason(n) {
			return r, nil
		}
	}
	return OK, fmt.Errorf("find reason %q: no such code or name (yumen explain --all lists them)", s)
}

// All returns every reason in ascending order of its number.
func All() []Reason { return slices.Sorted(maps.Keys(catalogue)) }
