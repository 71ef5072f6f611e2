package agent

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

func TestALockedUserIsToldSoAtOnce(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		locked := &carrier.RefusedError{Reason: reason.Locked, Result: reason.Locked.Result()}
		r.dialer.set("gw1:443", locked)
		r.dialer.set("gw2:443", locked)
		r.login()
		synctest.Wait()
		start := time.Now()
		w := r.a.Why(t.Context(), "APP00000001")
		if w.Allowed || w.Reason != reason.Locked.Code() || !strings.Contains(w.ZH, "已被管理员锁定") || time.Since(start) != 0 {
			t.Errorf("got %+v after %v", w, time.Since(start))
		}
		if s := r.a.Status(); s.State != Locked || s.UserID != testUser {
			t.Errorf("a hello was refused for a lock: %+v", s)
		}
		r.dialer.set("gw1:443", nil)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if s := r.a.Status(); s.State != Ready || s.Lock != nil {
			t.Errorf("after the lock: %+v", s)
		}
	})
}

// A lock of the device leaves the tunnel, whose every flow is refused: ready is
// the wrong word for that.
func TestStatusOfALockedDeviceSaysSoWithTheOperatorsWords(t *testing.T) {
	for _, words := range []string{"请联系安全部门; call 1234", ""} {
		bubble(t, nil, func(t *testing.T, r *rig) {
			r.login()
			synctest.Wait()
			al := alert.Alert{Code: alert.LockInForce, Time: time.Now(), Reason: reason.Locked, DeviceID: testID.DeviceID, Detail: "device " + testID.DeviceID + ": " + words}
			r.dialer.last().notices(&wire.Notice{
				GatewayID: "GW000000001", DeviceID: "DEV00000009", Timestamp: wire.FormatTime(al.Time), ExceptionAlertType: string(al.Code), ExceptionAlertLevel: 2,
				ExceptionAlertContent: wire.CleanText(al.Content(reason.Chinese, "DEV00000009")+" | "+al.Content(reason.English, "DEV00000009"), 2048),
			})
			synctest.Wait()
			s := r.a.Status()
			if s.State != Locked || s.Gateway == "" || s.Lock == nil || s.Lock.Message != words {
				t.Errorf("status %+v, lock %+v, want the words %q", s, s.Lock, words)
			}
			if w := s.State.Words(); !strings.Contains(w.EN, "locked") || !strings.Contains(w.ZH, "锁定") {
				t.Errorf("worded as %+v", w)
			}
			// The control center ends the sign-in by its next answer, without a word of
			// the lock: who is locked stays so until something succeeds.
			r.link.ev.SignedOut(fmt.Errorf("%w: it wants our identity first", ctlclient.ErrDown))
			if s := r.a.Status(); s.State != Locked || s.UserID != "" || s.Notices[0].Reason != reason.SessionRevoked.Code() {
				t.Errorf("after the sign-out: %+v", s)
			}
			r.login()
			synctest.Wait()
			if s := r.a.Status(); s.State != Ready || s.Lock != nil {
				t.Errorf("after a sign-in: %+v", s)
			}
		})
	}
}

func TestRefusedSignInOfALockedUser(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		proof := []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}}
		no := &ctlclient.RefusedError{Table: 18, Reason: reason.Locked, Result: reason.Locked.Result(), Message: "请联系管理员"}
		r.link.loginErr = no
		_, w := explainError(r.a.Login(t.Context(), "bob", proof))
		if s := r.a.Status(); s.State != Locked || s.Lock.Message != no.Message || !strings.Contains(w.EN, no.Message) || !strings.Contains(w.ZH, no.Message) {
			t.Errorf("status %+v, worded as %q", s, w)
		}
		r.link.loginErr = nil
		r.login()
		synctest.Wait()
		r.link.loginErr = no
		if err := r.a.Login(t.Context(), "bob", proof); err == nil || r.a.Status().State != Ready {
			t.Errorf("another's lock shows for the user who is signed in: %v, %+v", err, r.a.Status())
		}
	})
}
