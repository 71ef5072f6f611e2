package model

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/wire"
)

var t0 = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)

func put(t testing.TB, key string, v any) store.Op {
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return store.Put(key, raw)
}

// world is a state with its revision counter.
type world struct {
	*State
	t   testing.TB
	now time.Time
}

func newWorld(t testing.TB) *world {
	s, _ := New(0, nil, t0, func(u string) string { return "B" + u[1:] })
	w := &world{s, t, t0}
	w.do(put(t, KeyUser+"USR00000001", User{ID: "USR00000001", Name: "Alice"}),
		put(t, KeyParty+"AGT00000001", Party{Kind: Agent, ID: "AGT00000001", DeviceID: "DEV00000001"}),
		put(t, KeyApp+"APP00000001", App{ID: "APP00000001"}),
		put(t, KeyApp+"APP00000002", App{ID: "APP00000002"}))
	return w
}

func (w *world) do(ops ...store.Op) Change {
	return w.Apply(store.Batch{Rev: w.Rev + 1, Ops: ops}, w.now)
}

func (w *world) grant(id, device string, until time.Time, apps ...string) store.Op {
	return put(w.t, KeyGrant+id, Grant{ID: id, UserID: "USR00000001", Device: device, Apps: apps, Until: until})
}

func (w *world) session(token string) store.Op {
	return put(w.t, SessionKey(Pair{"USR00000001", "DEV00000001"}), Session{UserID: "USR00000001", DeviceID: "DEV00000001",
		AgentID: "AGT00000001", Token: token, Expires: w.now.Add(10 * time.Minute), Ends: w.now.Add(time.Hour)})
}

func TestGCR002_M54_RowExistsOnlyWhileTheUserIsAuthenticatedThere(t *testing.T) {
	w := newWorld(t)
	if c := w.do(w.grant("G1", AnyDevice, time.Time{}, "APP00000002", "APP00000001")); c.Delta() {
		t.Errorf("a grant without a session changed rows: %+v", c)
	}
	c := w.do(w.session("TOKEN000001"))
	if len(c.Rows) != 1 || !slices.Equal(c.Rows[0].Apps, []string{"APP00000001", "APP00000002"}) || c.Rows[0].Token != "TOKEN000001" {
		t.Fatalf("rows %+v", c.Rows)
	}
	if c.From >= c.To || c.To != w.GrantsVersion {
		t.Errorf("versions %d → %d, state %d", c.From, c.To, w.GrantsVersion)
	}
	if c := w.do(w.session("TOKEN000002")); len(c.Rows) != 1 || len(c.Remove) != 0 {
		t.Errorf("a rotation is a replacement, got %+v", c)
	}
	w.now = w.now.Add(10 * time.Minute)
	_, ops := w.Due(w.now, 10)
	if len(ops) != 1 || ops[0].Key != SessionKey(Pair{"USR00000001", "DEV00000001"}) {
		t.Fatalf("due %+v", ops)
	}
	if c := w.do(ops...); len(c.Remove) != 1 || len(w.Rows) != 0 {
		t.Errorf("the row outlives the token: %+v", c)
	}
}

func TestGCR002_M55_RowEndsWithTheFirstOfItsGrantsAndComesBackWithoutIt(t *testing.T) {
	w := newWorld(t)
	end := t0.Add(5 * time.Minute)
	w.do(w.grant("G1", AnyDevice, time.Time{}, "APP00000001"), w.grant("G2", "DEV00000001", end, "APP00000002"))
	c := w.do(w.session("TOKEN000001"))
	if !c.Rows[0].Expires.Equal(end) {
		t.Fatalf("expires %v, want %v", c.Rows[0].Expires, end)
	}
	next, _ := w.NextDue()
	if w.now = end.Add(-EarlyEnd); next.After(w.now) {
		t.Fatalf("next work at %v, want by %v", next, w.now)
	}
	_, ops := w.Due(w.now, 10)
	c = w.do(ops...)
	if len(c.Rows) != 1 || !slices.Equal(c.Rows[0].Apps, []string{"APP00000001"}) || !c.Rows[0].Expires.After(end) {
		t.Errorf("after the end of one grant: %+v", c.Rows)
	}
}

func TestGCR002_M56_NoApplicationsGrantNothing(t *testing.T) {
	w := newWorld(t)
	w.do(w.grant("G1", AnyDevice, time.Time{}))
	if c := w.do(w.session("TOKEN000001")); len(c.Rows) != 1 || len(c.Rows[0].Apps) != 0 {
		t.Errorf("rows %+v", c.Rows)
	}
	w.do(w.grant("G1", AnyDevice, time.Time{}, "APP00000001"))
	if c := w.do(store.Delete(KeyApp + "APP00000001")); len(c.Rows) != 1 || len(c.Rows[0].Apps) != 0 {
		t.Errorf("a removed application is still granted: %+v", c.Rows)
	}
}

func TestS4_LockTakesRowsAwayInTheSameChange(t *testing.T) {
	for _, ref := range []LockRef{{"user", "USR00000001"}, {"device", "DEV00000001"}, {"agent", "AGT00000001"}} {
		t.Run(ref.Kind, func(t *testing.T) {
			w := newWorld(t)
			w.do(w.grant("G1", AnyDevice, time.Time{}, "APP00000001"), w.session("TOKEN000001"))
			c := w.do(put(t, LockKey(ref), Lock{LockRef: ref, Message: "m", Until: t0.Add(time.Hour)}))
			if len(c.Remove) != 1 || len(c.Locks) != 1 || !c.Policies {
				t.Errorf("change %+v", c)
			}
			w.now = t0.Add(time.Hour)
			_, ops := w.Due(w.now, 10)
			if c := w.do(ops...); len(c.Unlocks) != 1 {
				t.Errorf("the lock outlives its end: %+v, ops %+v", c, ops)
			}
		})
	}
}

func TestQ27_BrowserClassHasRowsOfItsOwn(t *testing.T) {
	w := newWorld(t)
	c := w.do(w.grant("G1", BrowserDevice, time.Time{}, "APP00000001"))
	if len(c.Rows) != 1 || c.Rows[0].Device != Browser || c.Rows[0].Token != "BSR00000001" {
		t.Fatalf("rows %+v", c.Rows)
	}
	if c := w.do(w.session("TOKEN000001")); len(c.Rows[0].Apps) != 0 {
		t.Errorf("a browser's grant counts on a device: %+v", c.Rows)
	}
	w.do(w.grant("G2", AnyDevice, time.Time{}, "APP00000002"))
	if got := w.Rows[Pair{"USR00000001", Browser}].Apps; !slices.Equal(got, []string{"APP00000001"}) {
		t.Errorf("a device's grant counts in a browser: %v", got)
	}
	if c := w.do(store.Delete(KeyUser + "USR00000001")); len(c.Remove) != 2 {
		t.Errorf("a removed user keeps rows: %+v", c)
	}
}

func TestDeviceOfAnotherUserGivesNoRow(t *testing.T) {
	w := newWorld(t)
	w.do(w.grant("G1", AnyDevice, time.Time{}, "APP00000001"), w.session("TOKEN000001"))
	if c := w.do(put(t, KeyParty+"AGT00000001", Party{Kind: Agent, ID: "AGT00000001", DeviceID: "DEV00000001", UserID: "USR00000009"})); len(c.Remove) != 1 {
		t.Errorf("change %+v", c)
	}
}

// The rows that Apply keeps must be the rows that a fresh state has, whatever
// happened before, and the changes must add up to them.
func TestIncrementalRowsEqualFreshRows(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, _ := New(0, nil, t0, func(u string) string { return u })
		kv := map[string]store.Op{}
		mirror := map[Pair]*Row{}
		users, devices := []string{"U1", "U2"}, []string{"D1", "D2"}
		pick := func(from []string) string { return rapid.SampledFrom(from).Draw(rt, "pick") }
		value := func(key string) any {
			switch prefix := key[:2]; prefix {
			case "us":
				return User{ID: key[5:], Name: "n" + key[5:]}
			case "pa":
				return Party{Kind: Agent, ID: key[6:], DeviceID: "D" + key[7:], UserID: rapid.SampledFrom([]string{"", "U1"}).Draw(rt, "owner")}
			case "ap":
				return App{ID: key[4:]}
			case "gr":
				return Grant{ID: key[6:], UserID: pick(users), Device: pick([]string{"any", "browser", "D1"}),
					Apps: rapid.SliceOf(rapid.SampledFrom([]string{"P1", "P2"})).Draw(rt, "apps"), Until: rapid.SampledFrom([]time.Time{{}, t0.Add(time.Minute)}).Draw(rt, "until")}
			case "se":
				p := pairOf(key)
				return Session{UserID: p.User, DeviceID: p.Device, AgentID: "A" + p.Device[1:], Token: pick([]string{"T1", "T2"}), Expires: t0.Add(time.Hour), Ends: t0.Add(2 * time.Hour)}
			}
			return Lock{}
		}
		keys := []string{"user/U1", "user/U2", "party/A1", "party/A2", "app/P1", "app/P2", "grant/G1", "grant/G2", "lock/user/U1", "lock/device/D1", "lock/agent/A2"}
		for _, u := range users {
			for _, d := range devices {
				keys = append(keys, SessionKey(Pair{u, d}))
			}
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			key := pick(keys)
			op := store.Delete(key)
			if rapid.IntRange(0, 2).Draw(rt, "kind") > 0 {
				op = put(t, key, value(key))
			}
			kv[key] = op
			c := s.Apply(store.Batch{Rev: s.Rev + 1, Ops: []store.Op{op}}, t0)
			for _, p := range c.Remove {
				delete(mirror, p)
			}
			for _, r := range c.Rows {
				mirror[r.Pair] = r
			}
		}
		var entries []store.Entry
		for k, op := range kv {
			if !op.Delete {
				entries = append(entries, store.Entry{Key: k, Value: op.Value})
			}
		}
		fresh, faults := New(s.Rev, entries, t0, func(u string) string { return u })
		same := func(a, b *Row) bool { return a.Equal(b) }
		if len(faults) > 0 || !maps.EqualFunc(fresh.Rows, s.Rows, same) || !maps.EqualFunc(mirror, s.Rows, same) {
			rt.Fatalf("faults %v\nfresh  %+v\nkept   %+v\nmirror %+v", faults, fresh.SortedRows(), s.SortedRows(), mirror)
		}
	})
}

func TestRowFactsCarryWhatTableSevenCannot(t *testing.T) {
	posture := 90
	r := Row{Pair: Pair{"U", "D"}, Level: 2, Factors: []int{1, 4}, AuthTime: t0, Posture: &posture}
	if f := r.Facts(7); f.I != 7 || f.Level != 2 || f.AuthTime != wire.FormatTime(t0) || *f.Posture != 90 || f.Risk != nil {
		t.Errorf("facts %+v", f)
	}
}
