package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/wire"
)

// fill puts n alerts into a party's outbox while no link runs.
func fill(t *testing.T, p *party, from, n int) {
	t.Helper()
	d := p.durable()
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := from + w; i < from+n; i += 64 {
				if _, err := d.Append(context.Background(), ctlclient.ClassAlert, alertReport(p, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestR2_BacklogInOrderBesideLiveAlerts: after an outage the backlog comes in
// order, at 2,000 records a second or more on an idle machine, and alerts that
// are raised meanwhile are at the control center within 3 s. Nothing is missing,
// nothing twice.
func TestR2_BacklogInOrderBesideLiveAlerts(t *testing.T) {
	const backlog = 20000
	c := newCenter(t)
	p := c.enrol("gateway")
	fill(t, p, 0, backlog)
	d := p.durable()
	begin := time.Now()
	g, stop := p.run(d, &sink{})
	raised := map[string]time.Time{}
	live := 0
	for {
		what := fmt.Sprintf("live %04d", live)
		raised[what] = time.Now()
		g.Raise(alert.Alert{Code: alert.AppDown, Detail: what})
		live++
		if at := c.positions()["alert"].UpTo; at >= backlog {
			break
		}
		if time.Since(begin) > 2*time.Minute {
			t.Fatalf("after 2 min the control center stands at %d", c.positions()["alert"].UpTo)
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(begin)
	eventually(t, 10*time.Second, "everything is acknowledged", func() bool { return c.positions()["alert"].UpTo >= uint64(backlog+live) })
	stop()

	seen, last, slowest := map[string]int{}, -1, time.Duration(0)
	for _, l := range c.alerts() {
		seen[l.MsgID]++
		if seen[l.MsgID] > 1 {
			t.Errorf("%s came twice", l.MsgID)
		}
		var n int
		if _, err := fmt.Sscanf(l.Content, "backlog %d", &n); err == nil {
			if l.Time != "2026-01-02T03:04:05Z" {
				t.Errorf("record %d has the time %s", n, l.Time)
			}
			continue
		}
		if i := strings.Index(l.Content, "live "); i >= 0 {
			slowest = max(slowest, l.Received.Sub(raised[l.Content[i:i+9]]))
			last++
		}
	}
	if len(seen) < backlog+live {
		t.Errorf("%d alerts arrived, want %d", len(seen), backlog+live)
	}
	if last+1 < live {
		t.Errorf("%d live alerts arrived, want %d", last+1, live)
	}
	if slowest > 3*time.Second {
		t.Errorf("a live alert took %v beside the backlog, want at most 3 s", slowest)
	}
	t.Logf("%d records in %v: %.0f a second; %d live alerts meanwhile, the slowest after %v", backlog, took.Round(time.Millisecond), backlog/took.Seconds(), live, slowest.Round(time.Millisecond))
}

// drained waits until the control center has everything of the party's class.
func (p *party) drained(d *ctlclient.Durable, class string) {
	p.c.t.Helper()
	eventually(p.c.t, 30*time.Second, class+" is acknowledged to the last number", func() bool {
		for _, s := range d.Status().Classes {
			if s.Class == class {
				return s.Last > 0 && s.AckedTo == s.Last && s.Pending == 0
			}
		}
		return false
	})
}

// once fails when an alert of the backlog came twice or not at all.
func (c *center) once(from, n int) (lines int) {
	c.t.Helper()
	seen := map[int]int{}
	for _, l := range c.alerts() {
		var i int
		if _, err := fmt.Sscanf(l.Content, "backlog %d", &i); err == nil {
			seen[i]++
			lines++
		}
	}
	for i := from; i < from+n; i++ {
		if seen[i] != 1 {
			c.t.Errorf("record %d came %d times", i, seen[i])
			return lines
		}
	}
	return lines
}

// TestR2_CutsAndRestartsLoseNothing: the path is cut and the control center
// restarts again and again while a backlog is sent; every record has its effect
// once, and the proof holds.
func TestR2_CutsAndRestartsLoseNothing(t *testing.T) {
	const backlog = 20000
	c := newCenter(t)
	p := c.enrol("gateway")
	fill(t, p, 0, backlog)
	restarts, most := 0, 12
	if testbed.Long() {
		most = 1000
	}
	for restarts < 4 || restarts < most && c.positions()["alert"].UpTo < backlog {
		d := p.durable()
		_, stop := p.run(d, &sink{})
		at := c.positions()["alert"].UpTo
		eventually(t, 30*time.Second, "some more is acknowledged", func() bool {
			now := c.positions()["alert"].UpTo
			return now > at || now >= backlog
		})
		p.relay.cut()
		if restarts%2 == 0 {
			c.stop()
			c.start()
		}
		stop()
		p.relay.mend()
		restarts++
	}
	d := p.durable()
	_, stop := p.run(d, &sink{})
	p.drained(d, "alert")
	proof, err := d.Prove(p.keys, ctlclient.ClassAlert, 1, 0)
	if err != nil || !proof.Contiguous || !proof.Verified || proof.Acknowledged < backlog || proof.Acknowledged != proof.To {
		t.Errorf("proof %+v, %v", proof, err)
	}
	stop()
	c.once(0, backlog)
	t.Logf("%d cuts and restarts of the sender, %d of the control center", restarts, (restarts+1)/2)

	// The same proof from the folder, with nobody running; and a lie in it.
	proofs, err := ctlclient.ProveFolder(p.keys, p.stateDir+"/outbox", "alert", 1, backlog)
	if err != nil || len(proofs) != 1 || !proofs[0].Contiguous || !proofs[0].Verified {
		t.Errorf("proof of the folder %+v, %v", proofs, err)
	}
	file := p.stateDir + "/outbox/ack-alert.json"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(raw), `"up_to":`, `"up_to":9`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	proofs, err = ctlclient.ProveFolder(p.keys, p.stateDir+"/outbox", "alert", 1, backlog)
	if err != nil || len(proofs) != 1 || proofs[0].Contiguous || proofs[0].Verified {
		t.Errorf("proof with an altered acknowledgement %+v, %v", proofs, err)
	}
}

// TestR19_RestoredBackupIsNoticed: a copy of the state folder is brought back.
// Its numbers were used for other records since. The control center must not
// take the old numbers for the new records, nor the other way round.
func TestR19_RestoredBackupIsNoticed(t *testing.T) {
	c := newCenter(t)
	p := c.enrol("gateway")
	fill(t, p, 0, 100)
	d := p.durable()
	_, stop := p.run(d, &sink{})
	p.drained(d, "alert")
	stop()
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(p.stateDir)); err != nil {
		t.Fatal(err)
	}
	fill(t, p, 100, 100) // the future that the backup does not know
	d = p.durable()
	_, stop = p.run(d, &sink{})
	p.drained(d, "alert")
	stop()
	before := c.positions()["alert"]

	if err := errors.Join(os.RemoveAll(p.stateDir), os.CopyFS(p.stateDir, os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	fill(t, p, 1000, 150) // under numbers that the control center has for others
	d, own := p.durable(), &sink{}
	_, stop = p.run(d, own)
	p.drained(d, "alert")
	stop()
	after := c.positions()["alert"]
	if after.ID == before.ID || after.Former != 1 {
		t.Errorf("the control center has outbox %s with %d former ones; before %s", after.ID, after.Former, before.ID)
	}
	if own.count(alert.StateAltered) == 0 {
		t.Error("the gateway has not told that its memory is not the one that was")
	}
	c.once(0, 200)
	c.once(1000, 150)
	proof, err := ctlclient.ProveFolder(p.keys, p.stateDir+"/outbox", "alert", 1, 0)
	if err != nil || !proof[0].Contiguous || proof[0].Evidence.Former == nil || proof[0].Evidence.Former.Outbox != before.ID {
		t.Errorf("proof %+v, %v", proof, err)
	}
}

// TestR2_LostAcknowledgementIsRecomputed: the sender crashed before it kept the
// acknowledgement. Its records still give the control center's chain value, so
// nothing is sent again and the outbox keeps its name.
func TestR2_LostAcknowledgementIsRecomputed(t *testing.T) {
	c := newCenter(t)
	p := c.enrol("gateway")
	fill(t, p, 0, 300)
	crashed := filepath.Join(t.TempDir(), "crashed")
	if err := os.CopyFS(crashed, os.DirFS(p.stateDir)); err != nil {
		t.Fatal(err)
	}
	d := p.durable()
	_, stop := p.run(d, &sink{})
	eventually(t, 30*time.Second, "all is there", func() bool { return c.positions()["alert"].UpTo >= 300 })
	stop()
	before := c.positions()["alert"]
	if before.UpTo != 300 {
		t.Skipf("another alert came in between: the control center stands at %d", before.UpTo)
	}
	class := filepath.Join("outbox", "alert")
	err := errors.Join(os.RemoveAll(filepath.Join(p.stateDir, class)), os.CopyFS(filepath.Join(p.stateDir, class), os.DirFS(filepath.Join(crashed, class))),
		os.Remove(filepath.Join(p.stateDir, "outbox", "ack-alert.json")))
	if err != nil {
		t.Fatal(err)
	}
	own := &sink{}
	d = p.durable()
	_, stop = p.run(d, own)
	p.drained(d, "alert")
	stop()
	if after := c.positions()["alert"]; after.ID != before.ID || after.Former != 0 || own.count(alert.StateAltered) != 0 {
		t.Errorf("the control center has %+v, before %+v; %d alerts", after, before, own.count(alert.StateAltered))
	}
	c.once(0, 300)
}

// TestR2_ControlCenterThatForgotIsNoticed: the control center's records are gone.
// The sender says so, states what it no longer has, and keeps the proof that it
// was acknowledged.
func TestR2_ControlCenterThatForgotIsNoticed(t *testing.T) {
	c := newCenter(t)
	p := c.enrol("gateway")
	fill(t, p, 0, 50)
	d := p.durable()
	_, stop := p.run(d, &sink{})
	p.drained(d, "alert")
	stop()
	c.stop()
	if err := os.Remove(filepath.Join(c.cfg.DataDir, "alerts.jsonl")); err != nil {
		t.Fatal(err)
	}
	c.start()
	fill(t, p, 50, 50)
	own := &sink{}
	d = p.durable()
	_, stop = p.run(d, own)
	p.drained(d, "alert")
	proof, err := d.Prove(p.keys, ctlclient.ClassAlert, 1, 0)
	stop()
	if err != nil || !proof.Verified || proof.Evidence.Former == nil || proof.Evidence.Former.UpTo < 50 {
		t.Errorf("proof %+v, %v", proof, err)
	}
	if own.count(alert.StateAltered) == 0 {
		t.Error("nobody was told")
	}
	if at := c.positions()["alert"]; at.Lost != 0 || at.UpTo < 100 {
		t.Errorf("the control center has %+v", at)
	}
	c.once(50, 50)
}

// TestR24_DropsArriveAsGaps: what the caps drop during an outage is stated to
// the control center to the last record.
func TestR24_DropsArriveAsGaps(t *testing.T) {
	const n = 2000
	c := newCenter(t)
	p := c.enrol("gateway")
	cfg := ctlclient.DurableConfig{Dir: filepath.Join(p.stateDir, "outbox"), Key: ctlclient.OutboxKey(p.keys), Reserve: -1}
	cfg.Caps[ctlclient.ClassAlert] = 128 << 10
	d := ctlclient.NewDurable(cfg)
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := d.Append(context.Background(), ctlclient.ClassAlert, alertReport(p, i)); err != nil {
			t.Fatal(err)
		}
	}
	dropped := d.Stats()[ctlclient.ClassAlert].Dropped
	if err := d.Close(); err != nil || dropped == 0 {
		t.Fatalf("%d dropped, %v", dropped, err)
	}
	d = ctlclient.NewDurable(cfg)
	_, stop := p.run(d, &sink{})
	p.drained(d, "alert")
	proof, err := d.Prove(p.keys, ctlclient.ClassAlert, 1, 0)
	stop()
	at := c.positions()["alert"]
	var told, proved uint64
	for _, g := range at.Gaps {
		told += g.Count
	}
	if err != nil || proof.Contiguous || !proof.Verified || len(proof.Gaps) == 0 || len(proof.Unexplained) > 0 || len(proof.Faults) > 0 {
		t.Errorf("proof %+v, %v", proof, err)
	}
	for _, g := range proof.Gaps {
		proved += g.Count
	}
	arrived := c.once(n-10, 10)
	if at.Lost != dropped || told != dropped || proved != dropped || arrived+int(dropped) != n {
		t.Errorf("%d dropped; the control center was told of %d in %d gaps, %d lost; the proof names %d; %d of %d arrived", dropped, told, len(at.Gaps), at.Lost, proved, arrived, n)
	}
	// A restart of the control center forgets none of it.
	c.stop()
	c.start()
	if again := c.positions()["alert"]; again.UpTo != at.UpTo || again.Lost != at.Lost || len(again.Gaps) != len(at.Gaps) {
		t.Errorf("after a restart %+v, before %+v", again, at)
	}
}

// TestGCR002_M92_AgentsBacklogIsChained: an agent's alerts and statuses of an
// outage come by the same way as a gateway's, once and in order.
func TestGCR002_M92_AgentsBacklogIsChained(t *testing.T) {
	c := newCenter(t)
	p := c.enrol("agent")
	var user control.Done
	if err := c.admin.Do(t.Context(), "POST", "/v1/users", control.NewUser{Name: "alice", Password: "correct horse 1"}, &user); err != nil {
		t.Fatal(err)
	}
	d := p.durable()
	a, err := ctlclient.NewAgent(ctlclient.AgentConfig{URL: c.cfg.URL, AgentID: p.id, DeviceID: p.device, Keys: p.keys, StateDir: p.stateDir, Outbox: d, Dial: p.relay.dial,
		Address: func() (string, int) { return "127.0.0.1", 443 }, Usage: func() ctlclient.Usage { return ctlclient.Usage{} }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	if _, err := a.Login(t.Context(), user.ID, 1, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "correct horse 1"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the agent is connected", func() bool { return a.Status().Connected })
	p.relay.cut()
	for i := range 40 {
		a.Raise(alert.Alert{Code: alert.TunnelFault, Detail: fmt.Sprintf("during the outage %02d", i)})
	}
	eventually(t, 10*time.Second, "the alerts are kept", func() bool { return d.Status().Classes[ctlclient.ClassAlert].Pending >= 40 })
	p.relay.mend()
	p.drained(d, "alert")
	proof, err := d.Prove(p.keys, ctlclient.ClassAlert, 1, 0)
	if err != nil || !proof.Contiguous || !proof.Verified {
		t.Errorf("proof %+v, %v", proof, err)
	}
	cancel()
	<-done
	seen := map[string]int{}
	for _, l := range c.alerts() {
		if i := strings.Index(l.Content, "during the outage "); i >= 0 {
			seen[l.Content[i:i+20]]++
		}
	}
	for i := range 40 {
		if n := seen[fmt.Sprintf("during the outage %02d", i)]; n != 1 {
			t.Errorf("alert %d came %d times", i, n)
		}
	}
}

// TestAuditRecordsReachTheControlCenter: records of decisions go through the
// outbox, in order, and are kept apart from the control center's own.
func TestAuditRecordsReachTheControlCenter(t *testing.T) {
	const n = 500
	c := newCenter(t)
	p := c.enrol("gateway")
	d := p.durable()
	g, stop := p.run(d, &sink{})
	for i := range n {
		r := audit.Record{Time: time.Now(), Kind: audit.Decision, GatewayID: p.id, UserID: "USR00000001", Remote: "192.0.2.1:5", Result: "ok", Path: fmt.Sprintf("/p/%04d", i)}
		g.Audit(r.AppendJSON(nil))
	}
	eventually(t, 20*time.Second, "all are acknowledged", func() bool { return c.positions()["audit"].UpTo >= n })
	stop()
	raw, err := os.ReadFile(filepath.Join(c.cfg.DataDir, "gateway-audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for text := range strings.Lines(string(raw)) {
		var l struct {
			Record audit.Record `json:"record"`
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		if l.Record.Path == "" {
			continue
		}
		if want := fmt.Sprintf("/p/%04d", i); l.Record.Path != want {
			t.Fatalf("record %d is of %s", i, l.Record.Path)
		}
		i++
	}
	if i != n {
		t.Errorf("%d records arrived, want %d", i, n)
	}
}
