package control

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// maxEnrolTries voids a code after that many wrong secrets for it.
const maxEnrolTries = 10

// newSecret returns a secret for p's enrolment, "ID.random", and how it is
// kept.
func (s *Server) newSecret(id string) (string, *model.Enrolment) {
	raw := make([]byte, 20)
	rand.Read(raw)
	secret := id + "." + base64.RawURLEncoding.EncodeToString(raw)
	hash := sm3.Sum([]byte(secret))
	return secret, &model.Enrolment{Hash: hash[:], Until: s.cfg.Now().Add(s.cfg.EnrolLife)}
}

// codeText returns the code that an operator hands over.
func (s *Server) codeText(kind, secret string) (string, error) {
	return wire.EnrolCode{URL: s.cfg.URL, Fingerprint: s.fingerprint(), TLCPRoot: s.tlcpFingerprint(), Secret: secret, Kind: kind}.Text()
}

// errEnrol is the one answer to every wrong code.
var errEnrol = errors.New("enrolment refused")

// enrol gives a new party its certificates for a one-time code. The server is
// authenticated by the root whose fingerprint the code carries, the party by
// the code's secret.
func (s *Server) enrol(w http.ResponseWriter, r *http.Request) {
	source := addressOf(r.RemoteAddr)
	rec := &audit.Record{Time: s.cfg.Now(), Kind: audit.Interface, Object: "enrol", Remote: r.RemoteAddr}
	answer := func(why reason.Reason, id string, err error) {
		rec.Allowed, rec.Result, rec.Code = why == reason.OK, why.String(), why
		if err != nil {
			rec.Detail = err.Error()
		}
		if id != "" {
			rec.Object = "enrol " + id
		}
		s.audit.Write(rec)
		if why != reason.OK {
			s.stats.refused.Add(1)
			s.log.Warn("enrolment refused", zap.String("remote_addr", r.RemoteAddr), zap.Stringer("reason", why), zap.Error(err))
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status(why))
			w.Write(refuse("T5", why, "").body)
		}
	}
	if !s.sources.Begin("enrol:" + source) {
		answer(reason.LoginLimit, "", errors.New("too many wrong codes from this address"))
		return
	}
	raw, why := readBody(w, r)
	if why != reason.OK {
		answer(why, "", nil)
		return
	}
	q, err := wire.DecodeExtension[wire.EnrolRequest](raw)
	if err != nil {
		answer(reason.MessageInvalid, "", err)
		return
	}
	id, _, _ := strings.Cut(q.Secret, ".")
	if len(id) > wire.IDLength {
		id = "?"
	}
	reply, err := s.enrolParty(id, q)
	switch {
	case errors.Is(err, errEnrol):
		answer(reason.EnrolCode, id, err)
		return
	case err != nil:
		answer(reason.MessageInvalid, id, err)
		return
	}
	s.sources.Succeed("enrol:" + source)
	s.stats.enrolled.Add(1)
	answer(reason.OK, id, nil)
	body, err := wire.EncodeExtension(reply)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body)
}

// enrolParty spends the code and issues the certificates, in this order of
// checks: code known, not tried too often, secret right, not too old, requests
// sound. The code is gone in the same transaction that stores the certificates.
func (s *Server) enrolParty(id string, q *wire.EnrolRequest) (*wire.EnrolReply, error) {
	var p *model.Party
	var modified uint64
	s.view(func(st *model.State) { p, modified = st.Parties[id], st.Modified[model.KeyParty+id] })
	hash := sm3.Sum([]byte(q.Secret))
	if p == nil || p.Code == nil {
		return nil, fmt.Errorf("%w: no code is waiting for %s", errEnrol, id)
	}
	next := *p
	if p.Code.Tries >= maxEnrolTries {
		return nil, fmt.Errorf("%w: too many wrong secrets, the code is void", errEnrol)
	}
	if subtle.ConstantTimeCompare(hash[:], p.Code.Hash) != 1 {
		code := *p.Code
		code.Tries++
		next.Code = &code
		s.putParty(&next, modified) // a conflict means that another try was counted, or the code is gone
		return nil, fmt.Errorf("%w: wrong secret", errEnrol)
	}
	if !s.cfg.Now().Before(p.Code.Until) {
		return nil, fmt.Errorf("%w: the code has expired", errEnrol)
	}
	identity := certid.Identity{Device: p.DeviceID}
	switch p.Kind {
	case model.Gateway:
		identity.Gateway = p.ID
	case model.Agent:
		identity.Agent = p.ID
	case model.Application:
		identity.App = p.ID
	}
	o := lab.Options{TTL: s.cfg.CertLife}
	for _, a := range p.Addresses {
		if host, _, err := net.SplitHostPort(a); err == nil && host != "" {
			o.Hosts = append(o.Hosts, host)
		}
	}
	var certs wire.EnrolPEMs
	for _, c := range []struct {
		issue func([]byte, certid.Identity, lab.Options) ([]byte, error)
		csr   []byte
		pem   *string
		leaf  *[]byte
	}{
		{s.ca.IssueTLS, q.CSR.TLS, &certs.TLS, &next.TLS},
		{s.ca.IssueTLCPSign, q.CSR.TLCPSign, &certs.TLCPSign, &next.TLCP},
		{s.ca.IssueTLCPEnc, q.CSR.TLCPEnc, &certs.TLCPEnc, nil},
		{s.ca.IssueSign, q.CSR.Sign, &certs.Sign, &next.Sign},
		{s.ca.IssueEnc, q.CSR.Enc, &certs.Enc, &next.Enc},
	} {
		chain, err := c.issue(c.csr, identity, o)
		if err != nil {
			return nil, fmt.Errorf("issue certificates: %w", err)
		}
		if *c.pem = string(chain); c.leaf != nil {
			*c.leaf = leafDER(chain)
		}
	}
	next.Code, next.Enrolled = nil, s.cfg.Now()
	for dst, src := range map[*string]string{&next.Name: q.DeviceName, &next.Type: q.DeviceType, &next.System: q.SystemType} {
		if src != "" && len(src) <= 160 {
			*dst = src
		}
	}
	if _, err := s.putParty(&next, modified); err != nil {
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			return nil, fmt.Errorf("%w: the code was used at the same moment", errEnrol)
		}
		return nil, err
	}
	s.hub.forget(id)
	s.lists.drop(id)
	return s.enrolReply(p, certs)
}

func (s *Server) enrolReply(p *model.Party, certs wire.EnrolPEMs) (*wire.EnrolReply, error) {
	reply := &wire.EnrolReply{
		ID: p.ID, DeviceID: p.DeviceID, ControlID: s.cfg.ID,
		Certs: certs,
	}
	for name, dst := range map[string]*string{keystore.TLSRoot: &reply.Roots.TLS, keystore.TLCPRoot: &reply.Roots.TLCP,
		keystore.MessageRoot: &reply.Roots.Message, keystore.ListRoot: &reply.Roots.List} {
		*dst = string(s.ca.RootPEM(name))
	}
	if p.Kind == model.Agent {
		gateways := s.gateways()
		s.permit(gateways, p.DeviceID)
		if home := wire.Home(gateways); len(home.Gateways) > 0 {
			reply.Home = home
		}
	}
	reply.Control.URL = s.cfg.URL
	for name, dst := range map[string]*string{keystore.Sign: &reply.Control.Sign, keystore.Enc: &reply.Control.Enc} {
		chain, err := s.keys.Chain(name)
		if err != nil {
			return nil, err
		}
		*dst = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0].Raw}))
	}
	return reply, nil
}

func leafDER(chain []byte) []byte {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil
	}
	return block.Bytes
}

func (s *Server) putParty(p *model.Party, modified uint64) (uint64, error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	key := model.KeyParty + p.ID
	return s.commit([]store.Compare{{Key: key, Modified: modified}}, store.Put(key, raw))
}
