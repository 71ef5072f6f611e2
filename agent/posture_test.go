package agent

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/agent/posture"
)

// A device that changes is reported at once, not with the next minute; one that
// stays as it is makes no extra report.
func TestPostureThatChangesIsReportedAtOnce(t *testing.T) {
	var off atomic.Bool
	probe := func(r *rig) {
		r.a.cfg.Probe = func() posture.Report {
			r := posture.Report{OS: "linux", Arch: "amd64", Kernel: "6.1.0", DiskEncrypted: posture.Yes, Firewall: posture.Yes}
			if off.Load() {
				r.Firewall = posture.No
			}
			return r
		}
		r.a.posture = r.a.cfg.Probe() // as New has it
	}
	bubble(t, probe, func(t *testing.T, r *rig) {
		reports := func() int {
			r.link.mu.Lock()
			defer r.link.mu.Unlock()
			return r.link.reports
		}
		r.login()
		time.Sleep(time.Hour)
		if n := reports(); n != 0 {
			t.Errorf("%d extra reports in an hour without a change", n)
		}
		off.Store(true)
		time.Sleep(lookPeriod + watchPeriod)
		synctest.Wait()
		if n := reports(); n != 1 {
			t.Errorf("%d extra reports of one change, want 1", n)
		}
		if p := r.a.postureNow(); p.Firewall != posture.No {
			t.Errorf("reports say %+v", p)
		}
		if got := r.a.Status().Posture.Firewall; got != posture.No {
			t.Errorf("status says firewall %v", got)
		}
	})
}
