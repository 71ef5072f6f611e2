package ctlclient

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// A gateway begins beside a control center whose list takes long and whose
// grants change all the time. The list is older than the changes that came
// meanwhile, which count with it: one pull is enough, and what was removed stays
// away, also after a restart. When a change between is missing, the list comes
// again.
func TestGCR002_M54_AListCountsWithTheChangesThatCameMeanwhile(t *testing.T) {
	pair := func(user string) wire.PairRef {
		return wire.PairRef{UserID: user, DeviceID: strings.Replace(user, "USR", "DEV", 1)}
	}
	row := func(n int) (g wire.Grant) {
		if err := json.Unmarshal([]byte(grantRow(n)), &g); err != nil {
			t.Fatal(err)
		}
		return g
	}
	for _, c := range []struct {
		name   string
		deltas []wire.Delta
		pulls  int // of grants
		users  string
	}{
		{"all are there", []wire.Delta{
			{From: 4, To: 5, Grants: []wire.Grant{row(9)}}, // in the list, and taken out there again
			{From: 5, To: 6, Remove: []wire.PairRef{pair("USR00000001")}, Grants: []wire.Grant{row(4)}},
			{From: 6, To: 7, Remove: []wire.PairRef{pair("USR00000004")}},
			{From: 7, To: 8, Grants: []wire.Grant{row(5)}},
		}, 1, "USR00000002 USR00000003 USR00000005"},
		{"one is missing", []wire.Delta{
			{From: 5, To: 6, Remove: []wire.PairRef{pair("USR00000001")}},
			{From: 7, To: 8, Grants: []wire.Grant{row(5)}},
		}, 2, "USR00000002"},
	} {
		t.Run(c.name, func(t *testing.T) {
			site(t, func(t *testing.T, w *world, ctl *center, e *enforcer, cfg GatewayConfig) {
				ctl.setLists(5, w.grants(5, grantRow(1), grantRow(2), grantRow(3)), 1, ctl.policies)
				var mu sync.Mutex // of pulls and slow
				pulls, slow := 0, false
				ctl.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
					if strings.HasSuffix(r.URL.Path, "/lists/grants") {
						mu.Lock()
						if slow { // hedged: the same pull
							mu.Unlock()
							return false
						}
						pulls++
						slow = pulls == 1
						mu.Unlock()
						if pulls == 1 {
							time.Sleep(600 * time.Millisecond) // policies and stream are there
							for _, d := range c.deltas {
								ctl.push("1", "delta", w.delta(d))
							}
							time.Sleep(50 * time.Millisecond)
							mu.Lock()
							slow = false
							mu.Unlock()
						} else {
							ctl.setLists(8, w.grants(8, grantRow(2)), 1, ctl.policies)
						}
					}
					return false
				})
				g := newGateway(t, cfg)
				stop := run(t, g.Run)
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if e.users() != c.users || g.Status().GrantsVersion != 8 {
					t.Errorf("in force: %s at version %d, want %s at 8", e.users(), g.Status().GrantsVersion, c.users)
				}
				if pulls != c.pulls {
					t.Errorf("%d pulls of the grants, want %d", pulls, c.pulls)
				}
				stop()
				e.mu.Lock()
				e.rows = nil
				e.mu.Unlock()
				ctl.setDead(true)
				g = newGateway(t, cfg)
				defer run(t, g.Run)()
				time.Sleep(time.Second)
				if e.users() != c.users || g.Status().GrantsVersion != 8 {
					t.Errorf("after a restart: %s at version %d, want %s at 8", e.users(), g.Status().GrantsVersion, c.users)
				}
			})
		})
	}
}
