// Package link is the link between applications and the gateway (clause 6.3 of
// CSA GCR 002-2025): Tables 1 and 2, by which an application proves itself and
// says whether it is online.
//
// [Server] is the gateway's side; [Client] is an application's, or that of a
// connector that stands in for it.
package link

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// IdentityPath takes Table 1, on the gateway's host for applications.
const IdentityPath = "/ztna/v1/app/identity"

// Life is how long a Table 1 counts: two periods of 60 s (§6.2).
const Life = 120 * time.Second

// MethodMTLS is the authMethod of an application that proves itself by its
// certificate, the only method of this server (Q15).
const MethodMTLS = "MTLS"

// Config is what a [Server] needs. The zero value of an optional field selects
// its default.
type Config struct {
	GatewayID string
	Keys      *keystore.Store                       // sign, enc and the message root; required
	Apps      func() *apps.Registry                 // the registry in force; required
	Peer      func(*http.Request) *x509.Certificate // the leaf that proved its key; required
	Remote    func(*http.Request) string            // default: RemoteAddr
	Profile   wire.Profile                          // default lax
	Audit     audit.Sink                            // default: none
	Alerts    alert.Sink                            // default: none
	Logger    *zap.Logger                           // default: none
	Now       func() time.Time                      // default time.Now
}

// Server answers Table 1 with Table 2. It is an http.Handler for
// [IdentityPath]; the channel must have demanded a client certificate. It is
// safe for concurrent use.
type Server struct {
	cfg      Config
	receiver *envelope.Receiver
	sender   *envelope.Sender
	chain    []*smx509.Certificate
	enc      []*smx509.Certificate
	once     *envelope.Once
	roots    *smx509.CertPool

	mu   sync.Mutex
	apps map[string]*registration // by appId; guarded by mu; at most the registry's applications
}

// registration is what the newest Table 1 of an application left.
type registration struct {
	key    string               // authKey of its Table 2
	until  time.Time            //
	online bool                 //
	nonces map[string]time.Time // used within the skew window
}

// New returns a server.
func New(cfg Config) (*Server, error) {
	if cfg.Keys == nil || cfg.Apps == nil || cfg.Peer == nil {
		return nil, errors.New("make application link: keys, applications and peer are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Audit == nil {
		cfg.Audit = audit.Discard
	}
	if cfg.Alerts == nil {
		cfg.Alerts = alert.Discard
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Remote == nil {
		cfg.Remote = func(r *http.Request) string { return r.RemoteAddr }
	}
	s := &Server{cfg: cfg, apps: map[string]*registration{}}
	var err error
	if s.sender, s.chain, err = party(cfg.Keys, cfg.GatewayID, cfg.Now); err != nil {
		return nil, err
	}
	if s.enc, err = cfg.Keys.Chain(keystore.Enc); err != nil {
		return nil, err
	}
	dec, err := cfg.Keys.Decrypter(keystore.Enc)
	if err != nil {
		return nil, err
	}
	if s.roots, err = cfg.Keys.Root(keystore.MessageRoot); err != nil {
		return nil, err
	}
	if s.receiver, err = envelope.NewReceiver(envelope.Config{
		ID: cfg.GatewayID, Decrypter: dec, RequireSealed: true, Now: cfg.Now, Resolve: envelope.PartySigner(s.roots, cfg.Now),
	}); err != nil {
		return nil, err
	}
	s.once = envelope.NewOnce(envelope.OnceConfig{Now: cfg.Now})
	return s, nil
}

// party reads a party's signing half from its keys.
func party(keys *keystore.Store, id string, now func() time.Time) (*envelope.Sender, []*smx509.Certificate, error) {
	key, err := keys.Signer(keystore.Sign)
	if err != nil {
		return nil, nil, err
	}
	chain, err := keys.Chain(keystore.Sign)
	if err != nil {
		return nil, nil, err
	}
	return &envelope.Sender{ID: id, Key: key, Cert: chain[0], Now: now}, chain, nil
}

// extEnc carries the sender's encryption certificate, so that the reply can be
// sealed to it; it is verified under the message root.
const (
	extSigner = "signer"
	extEnc    = "enc"
)

// ServeHTTP is POST [IdentityPath].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != IdentityPath {
		http.NotFound(w, r)
		return
	}
	peer := s.cfg.Peer(r)
	if peer == nil {
		http.Error(w, reason.ClientCertAbsent.Result(), http.StatusUnauthorized)
		return
	}
	id, err := certid.Of(peer)
	if err != nil || id.App == "" {
		s.audit(r, "", reason.ClientCertBad, "no application's certificate")
		http.Error(w, reason.ClientCertBad.Result(), http.StatusUnauthorized)
		return
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet: // whom Table 1 is sealed to
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"gatewayId":%q,"enc":%s}`, s.cfg.GatewayID, envelope.SignerExt(s.enc))
		return
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "POST Table 1 here", http.StatusMethodNotAllowed)
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxMessage))
	if err != nil {
		s.audit(r, id.App, reason.MessageTooLarge, err.Error())
		http.Error(w, reason.MessageTooLarge.Result(), http.StatusRequestEntityTooLarge)
		return
	}
	m, err := s.receiver.Open(raw, "T1")
	if err != nil {
		var rej *envelope.RejectedError
		why := reason.MessageMalformed
		if errors.As(err, &rej) {
			why = rej.Reason
		}
		s.refusedMessage(r, id.App, why, err)
		http.Error(w, rejectedText, http.StatusBadRequest)
		return
	}
	if m.Header.Sender != id.App {
		s.refusedMessage(r, id.App, reason.MessageSender, fmt.Errorf("sender %q on the channel of %s", m.Header.Sender, id.App))
		http.Error(w, rejectedText, http.StatusBadRequest)
		return
	}
	to, err := encryptionCert(m, s.roots, id.App, s.cfg.Now())
	if err != nil {
		s.refusedMessage(r, id.App, reason.MessageSignature, err)
		http.Error(w, rejectedText, http.StatusBadRequest)
		return
	}
	body, _, err := s.once.Do(m.Header.Sender, m.Header.MsgID, m.Digest, func() []byte { return s.answer(r, id.App, m.Body) })
	if err != nil {
		s.refusedMessage(r, id.App, reason.MessageConflict, err)
		http.Error(w, reason.MessageConflict.Result(), http.StatusBadRequest)
		return
	}
	out, err := s.sender.Seal(envelope.Header{MsgType: "T2", Receiver: id.App, Ext: map[string]jsontext.Value{extSigner: envelope.SignerExt(s.chain)}}, body, to)
	if err != nil {
		s.cfg.Logger.Error("reply not sealed", zap.String("app_id", id.App), zap.Error(err))
		http.Error(w, reason.InternalError.Result(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if !bytes.Contains(body, []byte(`"code":200`)) {
		w.WriteHeader(http.StatusBadRequest)
	}
	_, _ = w.Write(out) // the application that went away asks again
}

const rejectedText = "message not accepted"

// answer decides on one Table 1 and returns the body of Table 2.
func (s *Server) answer(r *http.Request, app string, body []byte) []byte {
	t1, err := wire.Decode[wire.AppIdentity](body, s.cfg.Profile)
	var reply *wire.AppIdentityReply
	why, detail := reason.MessageInvalid, ""
	if err != nil {
		detail = err.Error()
	} else {
		reply, why, detail = s.register(app, t1)
	}
	if why != reason.OK {
		reply = &wire.AppIdentityReply{Code: wire.Failure, Result: why.Result()}
		if why == reason.MessageInvalid {
			reply.Result = wire.CleanText(why.Result()+": "+detail, 200)
		}
	}
	s.audit(r, app, why, detail)
	out, err := wire.Encode(reply)
	if err != nil {
		s.cfg.Logger.Error("reply not encoded", zap.String("app_id", app), zap.Error(err))
		out = []byte(`{"code":400,"result":"internal error"}`)
	}
	return out
}

// register takes one valid Table 1 and returns its Table 2.
func (s *Server) register(app string, t *wire.AppIdentity) (*wire.AppIdentityReply, reason.Reason, string) {
	now := s.cfg.Now()
	a := s.cfg.Apps().ID(app)
	at, err := wire.ParseTime(t.Timestamp)
	switch {
	case t.AppID != app:
		return nil, reason.MessageSender, "appId " + t.AppID + " on the channel of " + app
	case a == nil:
		return nil, reason.AppUnknown, "not registered at this gateway"
	case err != nil || now.Sub(at).Abs() > envelope.DefaultSkew:
		return nil, reason.MessageSkew, "timestamp " + t.Timestamp
	case t.AuthMethod != "" && t.AuthMethod != MethodMTLS:
		return nil, reason.MessageInvalid, "Table 1 authMethod: only " + MethodMTLS + " is possible here"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reg := s.apps[app]
	if reg == nil {
		reg = &registration{nonces: map[string]time.Time{}}
		s.apps[app] = reg
	}
	if t.SessionToken != "" && (now.After(reg.until) || subtle.ConstantTimeCompare([]byte(t.SessionToken), []byte(reg.key)) != 1) {
		return nil, reason.TokenUnknown, "sessionToken is not the authKey in force"
	}
	if t.Nonce != "" && !reg.fresh(t.Nonce, now) {
		return nil, reason.MessageConflict, "nonce used before"
	}
	reply := &wire.AppIdentityReply{Code: wire.Success, Result: reason.OK.Result(), AuthKey: newKey(), Expiry: wire.FormatTime(now.Add(Life)), SignatureType: envelope.SigSM2SM3}
	if reply.Signature, err = sign(s.sender.Key, app, reply, t.Nonce); err != nil {
		s.cfg.Logger.Error("reply not signed", zap.String("app_id", app), zap.Error(err))
		return nil, reason.InternalError, "sign"
	}
	was := reg.online && now.Before(reg.until)
	reg.key, reg.until, reg.online = reply.AuthKey, now.Add(Life), t.State == wire.Online
	if reg.online {
		a.SetOnline(reg.until)
	} else {
		a.SetOffline()
	}
	if was != reg.online {
		code := alert.AppBack
		if !reg.online {
			code = alert.AppDown
		}
		s.cfg.Alerts.Raise(alert.Alert{Code: code, Time: now, AppID: app, Detail: "Table 1 state " + fmt.Sprint(t.State)})
	}
	return reply, reason.OK, ""
}

const maxNonces = 1024

// fresh reports whether nonce is new within the window, and remembers it.
func (r *registration) fresh(nonce string, now time.Time) bool {
	if _, used := r.nonces[nonce]; used {
		return false
	}
	if len(r.nonces) >= maxNonces {
		for n, t := range r.nonces {
			if now.Sub(t) > 2*envelope.DefaultSkew {
				delete(r.nonces, n)
			}
		}
		if len(r.nonces) >= maxNonces {
			return false
		}
	}
	r.nonces[nonce] = now
	return true
}

// Check looks for applications whose Table 1 has run out since the last call
// and raises an alert for each. Call it every few seconds.
func (s *Server) Check() {
	now := s.cfg.Now()
	var down []string
	s.mu.Lock()
	for id, r := range s.apps {
		if r.online && now.After(r.until) {
			r.online = false
			down = append(down, id)
		}
	}
	s.mu.Unlock()
	for _, id := range down {
		s.cfg.Alerts.Raise(alert.Alert{Code: alert.AppDown, Time: now, AppID: id, Detail: "no Table 1 in time"})
	}
}

func newKey() string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	out := make([]byte, 0, 22)
	var b [64]byte
	for len(out) < cap(out) {
		rand.Read(b[:])
		for _, c := range b {
			if c < 248 && len(out) < cap(out) { // 248 = 4 × 62: no letter is likelier than another
				out = append(out, letters[c%62])
			}
		}
	}
	return string(out)
}

// signedReply is what the signature of Table 2 covers.
func signedReply(app string, t *wire.AppIdentityReply, nonce string) ([]byte, error) {
	// The names in JCS order; the values are ASCII without quotes (Table 1, Table 2).
	raw := jsontext.Value(fmt.Sprintf(`{"appId":%q,"authKey":%q,"expiry":%q,"nonce":%q}`, app, t.AuthKey, t.Expiry, nonce))
	if err := raw.Canonicalize(); err != nil {
		return nil, fmt.Errorf("sign Table 2: %w", err)
	}
	return append([]byte("yumen-t2-v1\n"), raw...), nil
}

func sign(key crypto.Signer, app string, t *wire.AppIdentityReply, nonce string) (string, error) {
	b, err := signedReply(app, t, nonce)
	if err != nil {
		return "", err
	}
	sig, err := key.Sign(rand.Reader, b, sm2.NewSM2SignerOption(true, nil))
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}

func (s *Server) refusedMessage(r *http.Request, app string, why reason.Reason, err error) {
	detail := err.Error()
	if u := errors.Unwrap(err); u != nil {
		detail = u.Error()
	}
	s.audit(r, app, why, detail)
	s.cfg.Alerts.Raise(alert.Alert{Code: alert.MessageRefused, Time: s.cfg.Now(), Reason: why, AppID: app, Remote: s.cfg.Remote(r), Detail: detail})
}

func (s *Server) audit(r *http.Request, app string, why reason.Reason, detail string) {
	s.cfg.Audit.Write(&audit.Record{
		Time: s.cfg.Now(), Kind: audit.Interface, GatewayID: s.cfg.GatewayID, AppID: app, Object: "T1", Remote: s.cfg.Remote(r),
		Allowed: why == reason.OK, Result: why.String(), Code: why, Detail: detail,
	})
}
