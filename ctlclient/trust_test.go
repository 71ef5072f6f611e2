package ctlclient

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// copyFolder copies the files of from into to, which it replaces.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	must(t, os.RemoveAll(to))
	must(t, os.CopyFS(to, os.DirFS(from)))
}

// overwrite writes the files of from over those of to, in place, and removes
// the others.
func overwrite(t *testing.T, from, to string) {
	t.Helper()
	have, err := os.ReadDir(to)
	must(t, err)
	for _, e := range have {
		if _, err := os.Stat(filepath.Join(from, e.Name())); err != nil {
			must(t, os.Remove(filepath.Join(to, e.Name())))
		}
	}
	want, err := os.ReadDir(from)
	must(t, err)
	for _, e := range want {
		raw, err := os.ReadFile(filepath.Join(from, e.Name()))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(to, e.Name()), raw, 0o600))
	}
}

func pairs(ns ...int) (out []wire.PairRef) {
	for _, n := range ns {
		out = append(out, wire.PairRef{UserID: fmt.Sprintf("USR%08d", n), DeviceID: fmt.Sprintf("DEV%08d", n)})
	}
	return out
}

// A folder that was put back from a backup, in whatever way, widens nothing
// before the control center has answered a fresh nonce; then only by lists that
// are not older than what it named. The folder itself serves at once.
func TestS4_RestoredBackupWidensNothing(t *testing.T) {
	old := func(name string) func(*testing.T, string, string) { // one file of the backup
		return func(t *testing.T, backup, dir string) {
			files, err := filepath.Glob(filepath.Join(backup, name))
			must(t, err)
			for _, f := range files {
				raw, err := os.ReadFile(f)
				must(t, err)
				must(t, os.WriteFile(filepath.Join(dir, filepath.Base(f)), raw, 0o600))
			}
		}
	}
	for _, tt := range []struct {
		name    string
		restore func(t *testing.T, backup, dir string)
		held    bool
	}{
		{"nothing", func(*testing.T, string, string) {}, false},
		{"the folder is renamed", func(t *testing.T, _, dir string) {
			must(t, os.Rename(dir, dir+".x"))
			must(t, os.Rename(dir+".x", dir))
		}, false},
		{"owner and mode set anew", func(t *testing.T, _, dir string) {
			must(t, os.Chmod(filepath.Join(dir, "witness"), 0o640))
			must(t, os.Chmod(filepath.Join(dir, "witness"), 0o600))
		}, false},
		{"replaced by copies", copyFolder, true},
		{"overwritten in place", overwrite, true},
		{"the newest folder, copied", func(t *testing.T, _, dir string) {
			copyFolder(t, dir, dir+".copy")
			copyFolder(t, dir+".copy", dir)
		}, true},
		{"only versions.json and the lists", func(t *testing.T, backup, dir string) {
			old("versions.json")(t, backup, dir)
			old("grants-*")(t, backup, dir)
			old("policies-*")(t, backup, dir)
		}, true},
		{"only the witness", old("witness"), true},
		{"deltas cut short", func(t *testing.T, _, dir string) {
			files, _ := filepath.Glob(filepath.Join(dir, "deltas-*"))
			if len(files) != 1 {
				t.Fatalf("deltas: %v", files)
			}
			must(t, os.Truncate(files[0], 0))
		}, true},
		{"deltas removed", func(t *testing.T, _, dir string) {
			files, _ := filepath.Glob(filepath.Join(dir, "deltas-*"))
			must(t, os.Remove(files[0]))
		}, true},
		{"witness removed", func(t *testing.T, _, dir string) { must(t, os.Remove(filepath.Join(dir, "witness"))) }, true},
		{"versions.json removed", func(t *testing.T, _, dir string) { must(t, os.Remove(filepath.Join(dir, "versions.json"))) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
				first := w.grants(5, grantRow(1), grantRow(2))
				c.setLists(5, first, 1, c.policies)
				stop := run(t, newGateway(t, cfg).Run)
				time.Sleep(5 * time.Second)
				c.push("6", "delta", w.delta(wire.Delta{From: 5, To: 6, Remove: pairs(9)}))
				time.Sleep(time.Second)
				stop()
				backup := cfg.StateDir + ".backup"
				copyFolder(t, cfg.StateDir, backup)

				// Later user 1 loses everything: by a list, then user 3 by a delta.
				e.fail = nil
				c.setLists(8, w.grants(8, grantRow(2), grantRow(3)), 1, c.policies)
				stop = run(t, newGateway(t, cfg).Run)
				time.Sleep(5 * time.Second)
				c.push("9", "delta", w.delta(wire.Delta{From: 8, To: 9, Remove: pairs(3)}))
				time.Sleep(time.Second)
				stop()

				c.setDead(true)
				tt.restore(t, backup, cfg.StateDir)
				e2, a2 := &enforcer{}, &alerts{}
				cfg.Handler, cfg.Alerts = e2, a2
				start := time.Now()
				g := newGateway(t, cfg)
				stop = run(t, g.Run)
				defer func() { stop() }()
				synctest.Wait()
				want, unproved := "USR00000002", 0
				if tt.held {
					want, unproved = "", 1
				}
				if got := e2.users(); got != want || time.Since(start) > 2*time.Second {
					t.Errorf("without the control center: %q, want %q", got, want)
				}
				if s := g.Status(); (s.Unproved != "") != tt.held || a2.count(alert.StateUnproved) != unproved {
					t.Errorf("status %q, %d alerts", s.Unproved, a2.count(alert.StateUnproved))
				}
				if strings.Contains(e2.calls(), "grants") == tt.held {
					t.Errorf("calls %q", e2.calls())
				}

				// It answers, and somebody replays the list of the backup: the version
				// that Table 5 names is the floor.
				c.setFault(func(rw http.ResponseWriter, r *http.Request) bool {
					if strings.HasSuffix(r.URL.Path, "/lists/grants") {
						rw.Write(first)
						return true
					}
					return false
				})
				c.mu.Lock()
				c.gv = 9
				c.noEcho = true
				c.mu.Unlock()
				c.setDead(false)
				time.Sleep(2 * time.Minute)
				if e2.users() != want || g.Status().Connected {
					t.Errorf("a Table 5 without the nonce: users %q, connected %v", e2.users(), g.Status().Connected)
				}
				c.mu.Lock()
				c.noEcho = false
				c.mu.Unlock()
				time.Sleep(3 * time.Minute)
				if e2.users() != want {
					t.Errorf("the list of the backup, replayed: %q", e2.users())
				}
				c.setFault(nil)
				c.setLists(9, w.grants(9, grantRow(2)), 1, w.policies(1, nil, policyRow(1, "level", "1")))
				time.Sleep(3 * time.Minute)
				if e2.users() != "USR00000002" || g.Status().Unproved != "" {
					t.Errorf("the newest list: users %q, status %q", e2.users(), g.Status().Unproved)
				}
				// And the folder is one that was left, again.
				stop()
				c.setDead(true)
				e3 := &enforcer{}
				cfg.Handler = e3
				stop = run(t, newGateway(t, cfg).Run)
				synctest.Wait()
				if e3.users() != "USR00000002" {
					t.Errorf("the next start: users %q", e3.users())
				}
			})
		})
	}
}

// Locks and revocations of a folder that proves nothing are in force.
func TestS4_RestoredBackupStillTakesAway(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		stop := run(t, newGateway(t, cfg).Run)
		time.Sleep(5 * time.Second)
		c.push("2", "delta", w.delta(wire.Delta{From: 1, To: 2, Locks: []wire.LockRow{{Kind: "user", ID: "USR00000001"}}, Revoke: []wire.Revocation{{SessionID: "s"}}}))
		time.Sleep(time.Second)
		stop()
		c.setDead(true)
		copyFolder(t, cfg.StateDir, cfg.StateDir+".copy")
		copyFolder(t, cfg.StateDir+".copy", cfg.StateDir)
		e2 := &enforcer{}
		cfg.Handler = e2
		run(t, newGateway(t, cfg).Run)()
		if e2.calls() != "narrow 0-0" || len(e2.deltas[0].Locks) != 1 || len(e2.deltas[0].Revoke) != 1 {
			t.Errorf("calls %q, deltas %+v", e2.calls(), e2.deltas)
		}
	})
}

// R17: a clock that stands before the last contact makes nothing valid again.
func TestR17_ClockBeforeTheLastContact(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		stop := run(t, newGateway(t, cfg).Run)
		time.Sleep(5 * time.Second)
		stop()
		c.setDead(true)
		var told []time.Time
		cfg.Contact = func(at time.Time) { told = append(told, at) }
		contact := time.Now().Add(-5 * time.Second)
		time.Sleep(30 * time.Minute)
		e2 := &enforcer{}
		cfg.Handler = e2
		run(t, newGateway(t, cfg).Run)()
		if e2.users() == "" || len(told) != 1 || told[0].Sub(contact).Abs() > time.Second {
			t.Errorf("half an hour later: users %q, last contact %v, want %v", e2.users(), told, contact)
		}
		cfg.Now = func() time.Time { return time.Now().Add(-33 * time.Minute) }
		e3 := &enforcer{}
		cfg.Handler = e3
		g := newGateway(t, cfg)
		run(t, g.Run)()
		if e3.users() != "" || !strings.Contains(g.Status().Unproved, "clock") {
			t.Errorf("minutes before: users %q, status %q", e3.users(), g.Status().Unproved)
		}
	})
}

// S4: of 100 older lists none is taken, nor after a restart, and nothing of the
// state changes.
func TestS4_AHundredReplaysOfOlderLists(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		newest := w.grants(1000, grantRow(1))
		policies := w.policies(1, nil, policyRow(1, "level", "1"))
		c.setLists(1000, newest, 1, policies)
		g := newGateway(t, cfg)
		stop := run(t, g.Run)
		time.Sleep(5 * time.Second)
		replays := func(n int) {
			for i := range n {
				c.setLists(1000, w.grants(uint64(i*19%1000)+1, grantRow(1), grantRow(2)), 1, policies)
				g.pullWhole(wire.GrantsList, true)
				g.Sync()
				time.Sleep(time.Second)
			}
		}
		disk := func() string {
			var b strings.Builder
			must(t, filepath.WalkDir(cfg.StateDir, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() && d.Name() != witnessFile { // which has the time of the contact
					raw, _ := os.ReadFile(path)
					fmt.Fprintf(&b, "%s %x\n", d.Name(), wire.PageHash(raw))
				}
				return err
			}))
			return b.String()
		}
		before := disk()
		replays(50)
		if s := g.Status(); s.Refused != 50 || e.users() != "USR00000001" || s.GrantsVersion != 1000 || disk() != before {
			t.Errorf("refused %d of 50, users %q, version %d, disk changed %v", s.Refused, e.users(), s.GrantsVersion, disk() != before)
		}
		if n := cfg.Alerts.(*alerts).count(alert.ListRefused); n != 50 {
			t.Errorf("%d alerts, want 50", n)
		}
		stop()
		e2 := &enforcer{}
		cfg.Handler = e2
		g = newGateway(t, cfg)
		stop = run(t, g.Run)
		defer stop()
		time.Sleep(5 * time.Second)
		had := g.Status().Refused
		replays(50)
		if s := g.Status(); s.Refused-had != 50 || e2.users() != "USR00000001" {
			t.Errorf("after the restart: refused %d of 50, users %q", s.Refused-had, e2.users())
		}
	})
}

// A control center that says that it believes something else gets its lists
// put in force anew, though the version is the same.
func TestStateHashDifferenceFetchesTheWholeList(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		cfg.StateHash = func() wire.StateHash {
			return wire.StateHash{Grants: wire.VersionHash{Version: 1, Hash: "00"}, Policies: wire.VersionHash{Version: 1, Hash: "01"}}
		}
		say := false
		var seen []wire.StateHash
		c.answer = func(kind string, m *envelope.Message) (string, []byte, extMap) {
			if kind != "T10" {
				return "", nil, nil
			}
			var h wire.StateHash
			if json.Unmarshal(m.Header.Ext[wire.ExtStateHash], &h) == nil {
				seen = append(seen, h)
			}
			if !say {
				return "", nil, nil
			}
			say = false
			body, err := wire.Encode(&wire.Reply{Code: wire.Success, Result: "YM-000 OK: allowed"})
			must(t, err)
			return "T5", body, extMap{wire.ExtDiffers: jsontext.Value(`["grants"]`)}
		}
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		e.mu.Lock()
		e.rows, e.log = nil, nil // a fault: what is in force is not what was given
		e.mu.Unlock()
		time.Sleep(3 * time.Minute)
		if e.users() != "" {
			t.Errorf("pulled by itself: %q", e.calls())
		}
		c.mu.Lock()
		say = true
		c.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if e.users() != "USR00000001" || g.Status().Differed != 1 || cfg.Alerts.(*alerts).count(alert.StateDiffers) != 1 {
			t.Errorf("users %q, calls %q, differed %d, alerts %d", e.users(), e.calls(), g.Status().Differed, cfg.Alerts.(*alerts).count(alert.StateDiffers))
		}
		if len(seen) == 0 || seen[0].Grants.Hash != "00" {
			t.Errorf("reported %+v", seen)
		}
	})
}

// A log-out of an outage reaches the control center when it is back, once.
func TestGCR002_M119_LogoutIsKeptAndSent(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		until := time.Now().Add(time.Hour)
		must(t, g.EndSession(t.Context(), "sid1", until))
		time.Sleep(time.Second)
		c.setDead(true)
		must(t, g.EndSession(t.Context(), "sid2", until))
		if err := g.EndSession(t.Context(), "a/b", until); err == nil {
			t.Error("a part of a session was taken for one")
		}
		time.Sleep(time.Minute)
		c.setDead(false)
		time.Sleep(75 * time.Second)
		var got []string
		for _, r := range c.of(wire.TypeLogout) {
			m, err := wire.DecodeExtension[wire.Logout](r.body)
			must(t, err)
			got = append(got, m.SessionID)
		}
		if fmt.Sprint(got) != "[sid1 sid2]" {
			t.Errorf("arrived: %v", got)
		}
	})
}
