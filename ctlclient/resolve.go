package ctlclient

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// The bounds of the cache of subjects.
const (
	maxSubjects    = 8192
	subjectFresh   = time.Minute     // an answer is taken as it is
	subjectUnknown = 5 * time.Second // so is a refusal
	subjectStale   = 4 * time.Hour   // an answer serves while the control center is away
)

// subjects is the cache of (issuer, subject) → userId. It says who somebody is,
// not what they may do: the grants decide that.
type subjects struct {
	mu sync.Mutex
	m  map[wire.SubjectQuery]subject // guarded by mu
}

type subject struct {
	userID string // empty: unmapped
	at     time.Time
}

func (s *subjects) get(q wire.SubjectQuery) (subject, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.m[q]
	return e, ok
}

// put stores an answer; a full cache forgets a few arbitrary ones.
func (s *subjects) put(q wire.SubjectQuery, e subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[wire.SubjectQuery]subject{}
	}
	for old := range s.m {
		if len(s.m) < maxSubjects {
			break
		}
		delete(s.m, old)
	}
	s.m[q] = e
}

// Resolve asks the control center for the userId of an identity provider's
// subject (Q26). It answers from a bounded cache where it can; without an
// entry the reason is SubjectUnmapped, without the control center
// UpstreamUnreachable.
func (g *Gateway) Resolve(ctx context.Context, issuer, subj string) (userID string, r reason.Reason) {
	q := wire.SubjectQuery{Issuer: issuer, Subject: subj}
	if issuer == "" || subj == "" || len(issuer)+len(subj) > 4096 {
		return "", reason.SubjectUnmapped
	}
	now := g.cfg.Now()
	known, ok := g.subjects.get(q)
	if age := now.Sub(known.at); ok && known.userID != "" && age < subjectFresh {
		return known.userID, reason.OK
	} else if ok && known.userID == "" && age < subjectUnknown {
		return "", reason.SubjectUnmapped
	}
	ctx, cancel := context.WithTimeout(ctx, LateAfter)
	defer cancel()
	userID, err := g.ask(ctx, q)
	var no *RefusedError
	switch {
	case err == nil:
		g.subjects.put(q, subject{userID, now})
		return userID, reason.OK
	case errors.As(err, &no):
		g.subjects.put(q, subject{"", now})
		return "", reason.SubjectUnmapped
	case ok && known.userID != "" && now.Sub(known.at) < subjectStale:
		return known.userID, reason.OK
	}
	g.log.Warn("subject not resolved", zap.String("issuer", issuer), zap.Error(err))
	return "", reason.UpstreamUnreachable
}

func (g *Gateway) ask(ctx context.Context, q wire.SubjectQuery) (string, error) {
	body, err := wire.EncodeExtension(q)
	if err != nil {
		return "", err
	}
	m, err := g.call.post(ctx, "/subjects", envelope.Header{MsgType: wire.TypeSubject}, body, true)
	if err != nil {
		return "", err
	}
	if m.Header.MsgType != wire.TypeSubject {
		return "", ErrDown
	}
	reply, err := wire.DecodeExtension[wire.SubjectReply](m.Body)
	if err != nil || reply.UserID == "" || len(reply.UserID) > wire.IDLength {
		return "", errors.Join(ErrDown, err)
	}
	return reply.UserID, nil
}
