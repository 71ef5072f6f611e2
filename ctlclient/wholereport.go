package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// errNotWhole says that the control center does not know X.report: Tables 16,
// 19 and 21 go one by one then.
var errNotWhole = errors.New("the control center does not know X.report")

// reportWhole sends what is due every minute as one X.report: the identity
// report (Q25), the status, the device's posture, and which resource list we
// have. It costs both ends a third of the three messages. A status that does
// not arrive goes into the outbox, where those of an outage wait.
func (a *Agent) reportWhole(ctx context.Context, user string) error {
	a.mu.Lock()
	method, tag := a.method, a.tag
	a.mu.Unlock()
	now := a.cfg.Now()
	status := a.statusOf(user, now)
	m := wire.AgentReport{Resources: tag}
	if a.cfg.Posture != nil {
		m.Posture = a.cfg.Posture()
	}
	var err, err2 error
	m.Authentication, err = wire.Encode(a.authentication(user, method, nil))
	m.Status, err2 = wire.Encode(status)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("make report: %w", err)
	}
	body, err := wire.EncodeExtension(m)
	if err != nil {
		return fmt.Errorf("make report: %w", err)
	}
	b := begun{time.Now(), !a.reports.delivery.up.Load()}
	reply, err := a.call.post(ctx, "/report", envelope.Header{MsgType: wire.TypeReport}, body, true)
	if notWhole(reply, err) {
		return errNotWhole
	}
	a.reports.delivery.took(ctx, "T16", b, err)
	if err != nil {
		if errors.Is(err, ErrDown) && !errors.Is(err, errNotIdentified) {
			a.keepStatus(context.WithoutCancel(ctx), now, status)
		}
		return err
	}
	t, r, newTag, no, err := a.readReply(reply, user)
	if err != nil {
		return err
	}
	if no != "" {
		a.reports.refusedFor(ClassStatus, m.Status, &RefusedError{Table: 21, Reason: resultReason(no), Result: no})
	} else {
		a.reports.confirm(Delivery{Type: "T21", Took: time.Since(b.at), Outage: b.outage})
	}
	if err := a.reported(t, user); err != nil {
		return err
	}
	if r != nil {
		return a.pass(r, newTag)
	}
	a.mu.Lock()
	a.status.LastResources = a.cfg.Now()
	a.mu.Unlock()
	return nil
}

// notWhole reports whether the answer to an X.report, or its refusal, says that
// it was not understood: whoever understands it answers with it, or with Table
// 18.
func notWhole(reply *envelope.Message, err error) bool {
	var status *statusError
	var no *RefusedError
	switch {
	case errors.As(err, &status):
		return notSpoken(status.code)
	case errors.As(err, &no):
		return no.reply != nil && no.reply.Header.MsgType != "T18" && no.Reason != reason.MessageSkew
	}
	return err == nil && reply.Header.MsgType != wire.TypeReport
}

// notSpoken reports whether an HTTP status means that a path, or what was sent
// there, is not known.
func notSpoken(status int) bool {
	switch status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusNotImplemented:
		return true
	}
	return false
}

// readReply reads the answer to an X.report: the token, Table 19 with its tag
// where that is another one than ours, and how Table 21 was refused, if it was.
func (a *Agent) readReply(m *envelope.Message, user string) (t Token, r *Resources, tag, no string, err error) {
	reply, err := wire.DecodeExtension[wire.AgentReportReply](m.Body)
	if err != nil {
		return t, nil, "", "", fmt.Errorf("%w: %w", ErrDown, err)
	}
	said, err := wire.Decode[wire.AuthenticationReply](reply.Authentication, a.cfg.Profile)
	if err != nil {
		return t, nil, "", "", fmt.Errorf("%w: %w", ErrDown, err)
	}
	if said.Code != wire.Success {
		return t, nil, "", "", fmt.Errorf("%w: table 18 refuses in an answer that accepts", ErrDown)
	}
	if t, err = tokenOf(said, m, user); err != nil || reply.Resources == nil {
		return t, nil, "", reply.Status, err
	}
	r = &Resources{Facts: reply.Resources.Facts, Gateways: reply.Resources.Gateways}
	return t, r, reply.Resources.Tag, reply.Status, a.readList(r, reply.Resources.List, user)
}

// ReportNow sends the next report at once, for the device has changed. It never
// blocks.
func (a *Agent) ReportNow() {
	select {
	case a.due <- struct{}{}:
	default:
	}
}
