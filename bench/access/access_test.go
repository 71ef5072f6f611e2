package access_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

const (
	grants = 100_000
	apps   = 20
)

func userID(i int) string { return fmt.Sprintf("USR%08d", i) }
func appID(i int) string  { return fmt.Sprintf("APP%08d", i) }
func token(i int) string  { return fmt.Sprintf("T%010d", i) }

// rows is a list as a site has it: a few roles, each with its applications.
func rows(n int) []policy.Row {
	var roles [16][]string
	for i := range roles {
		for k := range apps {
			if k == 1 || (i+k)%4 != 3 {
				roles[i] = append(roles[i], appID(k))
			}
		}
	}
	end := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	out := make([]policy.Row, n)
	for i := range out {
		out[i] = policy.Row{Grant: wire.Grant{UserID: userID(i), DeviceID: fmt.Sprintf("DEV%08d", i), AuthenticationToken: token(i), ExpirationDate: end, AppIDList: roles[i%16]},
			Level: 2, Posture: policy.ScoreOf(90)}
	}
	return out
}

func pol(id, typ, data string) wire.Policy {
	return wire.Policy{PolicyID: id, PolicyName: id, PolicyType: typ, PolicyData: data}
}

func policies() []wire.Policy {
	out := []wire.Policy{
		pol("POL00000001", "ipallow", "10.0.0.0/8,2001:db8::/32"), pol("POL00000002", "ipdeny", "10.66.0.0/16"),
		pol("POL00000003", "time", "1-7 0000-2400 +08"), pol("POL00000004", "posture", ">=80"), pol("POL00000005", "level", "1"),
	}
	for i := range apps {
		p := fmt.Sprintf("POL%08d", 100+i)
		out = append(out, pol(p, "app", "GET /api/*"), pol(fmt.Sprintf("BND%08d", 100+i), "bind", p+" "+appID(i)))
	}
	return out
}

func configuration() []policy.App {
	var out []policy.App
	for i := range apps {
		out = append(out, policy.App{ID: appID(i)})
	}
	return out
}

func input(n int) policy.Input {
	return policy.Input{Apps: configuration(), Grants: rows(n), Policies: policies(), Version: 1}
}

func facts(i int) policy.Facts {
	return policy.Facts{SessionID: fmt.Sprintf("S%d", i), UserID: userID(i), DeviceID: fmt.Sprintf("DEV%08d", i), Token: token(i)}
}

var request = policy.Request{Remote: netip.MustParseAddr("10.1.2.3"), Protocol: policy.TLCP, Method: "GET", Path: "/api/x"}

func build(b *testing.B, n int) (*policy.Snapshot, *policy.TokenKey) {
	in := input(n)
	in.Key = policy.NewTokenKey()
	s, faults := policy.Build(in)
	if len(faults) != 0 {
		b.Fatal(faults)
	}
	return s, in.Key
}

// BenchmarkDecide is a decision of another subject each time, with six policies
// on it.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1000, grants} {
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			s, key := build(b, n)
			subs := make([]*policy.Subject, n)
			for i := range subs {
				subs[i] = key.Subject(facts(i))
			}
			now, app := time.Now(), s.App(appID(1))
			granted := 0
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i = (i + 7919) % n
				if s.Decide(subs[i], app, &request, now).Reason == reason.OK {
					granted++
				}
			}
			if granted == 0 {
				b.Fatal("nothing was granted")
			}
		})
	}
	// What the machine takes to touch a subject and a row of as many, in the
	// same order, each known only when the one before is read, without deciding
	// anything: the floor of the one above.
	b.Run("memory floor", func(b *testing.B) {
		subs := make([]*[256]byte, grants)
		for i := range subs {
			subs[i] = new([256]byte)
		}
		table := make([][64]byte, grants)
		sum, i := 0, 0
		for b.Loop() {
			i = (i + 7919 + sum) % grants
			sum = int(table[(i+int(subs[i][0]))%grants][32]) // 0, which nobody knows before
		}
		if sum != 0 {
			b.Fatal(sum)
		}
	})
	// A map of strings of the same size, for comparison.
	b.Run("map of strings", func(b *testing.B) {
		m, keys := map[string]int{}, make([]string, grants)
		for i := range keys {
			keys[i] = token(i)
			m[keys[i]] = i
		}
		sum, i := 0, 0
		for b.Loop() {
			i = (i + 7919) % grants
			sum += m[keys[i]]
		}
		if sum < 0 {
			b.Fatal(sum)
		}
	})
	// One subject again and again, as requests of one connection are.
	b.Run("same subject", func(b *testing.B) {
		s, key := build(b, grants)
		sub, now, app := key.Subject(facts(1)), time.Now(), s.App(appID(1))
		b.ReportAllocs()
		for b.Loop() {
			s.Decide(sub, app, &request, now)
		}
	})
	// One subject and two applications in turn, so that nothing is remembered:
	// every decision is made in full.
	b.Run("in full", func(b *testing.B) {
		s, key := build(b, grants)
		sub, now, app := key.Subject(facts(1)), time.Now(), [2]policy.AppIndex{s.App(appID(1)), s.App(appID(0))}
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			i++
			s.Decide(sub, app[i&1], &request, now)
		}
	})
}

// BenchmarkAddPage parses and indexes rows as they arrive, an op a row.
func BenchmarkAddPage(b *testing.B) {
	list, key := rows(grants), policy.NewTokenKey()
	bld, n := policy.NewBuilder(key, nil), 0
	for b.Loop() {
		if n == len(list) {
			bld, n = policy.NewBuilder(key, nil), 0
		}
		bld.AddPage(list[n : n+1])
		n++
	}
}

// BenchmarkFinishAndSwap is what is left after a list of 100,000 rows has been
// parsed: compile the policies, publish, recheck 1,000 sessions.
func BenchmarkFinishAndSwap(b *testing.B) {
	list := rows(grants)
	a := access.New(access.Config{})
	a.Apply(input(grants))
	attachAll(b, a, 1000)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		bld := a.Builder()
		bld.AddPage(list)
		bld.SetPolicies(policies(), nil, 2)
		b.StartTimer()
		if faults, err := a.ApplyPages(bld, nil); err != nil || len(faults) != 0 {
			b.Fatal(err, faults)
		}
	}
}

// BenchmarkDelta is one signed change among 100,000 rows: narrow, edit, swap,
// recheck 1,000 sessions.
func BenchmarkDelta(b *testing.B) {
	a := access.New(access.Config{})
	a.Apply(input(grants))
	attachAll(b, a, 1000)
	r := rows(1)
	v := uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		d := access.Delta{From: v, To: v + 1, Remove: []access.Pair{{UserID: userID(grants - 1), DeviceID: fmt.Sprintf("DEV%08d", grants-1)}}, Grants: r}
		if _, err := a.ApplyDelta(d, nil); err != nil {
			b.Fatal(err)
		}
		v++
	}
}

type carrier struct{ cuts *atomic.Int64 }

func (carrier) Kind() access.Kind   { return access.TCP }
func (c carrier) Cut(reason.Reason) { c.cuts.Add(1) }

func attachAll(b *testing.B, a *access.Access, n int) []*access.Session {
	out := make([]*access.Session, n)
	for i := range out {
		s, why := a.Attach(facts(i))
		if why != reason.OK {
			b.Fatal(why)
		}
		out[i] = s
	}
	return out
}

// BenchmarkAcquireRelease is the share of access in one request.
func BenchmarkAcquireRelease(b *testing.B) {
	a := access.New(access.Config{})
	app := a.App(appID(1))
	a.Apply(input(grants))
	s := attachAll(b, a, 1)[0]
	c := carrier{new(atomic.Int64)}
	b.ReportAllocs()
	for b.Loop() {
		l, no := a.Acquire(s, app, &request, c)
		if l == nil {
			b.Fatal(no)
		}
		l.Release(access.Usage{})
	}
}

// BenchmarkCut is a removal by Narrow until the last carrier's Cut has
// returned, with 100,000 grants and 10,000 live sessions.
func BenchmarkCut(b *testing.B) {
	for _, n := range []int{1, 5000} {
		b.Run(fmt.Sprintf("leases=%d", n), func(b *testing.B) {
			a := access.New(access.Config{})
			app := a.App(appID(1))
			in := input(grants)
			a.Apply(in)
			d := access.Delta{}
			for i := range n {
				d.Remove = append(d.Remove, access.Pair{UserID: userID(i), DeviceID: fmt.Sprintf("DEV%08d", i)})
			}
			c := carrier{new(atomic.Int64)}
			unchanged := func(*policy.Builder) {}
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				if _, err := a.Change(unchanged, nil); err != nil { // the overlay goes
					b.Fatal(err)
				}
				var leases []*access.Lease
				for i, s := range attachAll(b, a, 10_000) {
					if i < n {
						l, no := a.Acquire(s, app, &request, c)
						if l == nil {
							b.Fatal(no)
						}
						leases = append(leases, l)
					}
				}
				before := c.cuts.Load()
				b.StartTimer()
				a.Narrow(d)
				b.StopTimer()
				if got := c.cuts.Load() - before; got != int64(n) {
					b.Fatalf("%d cut, want %d", got, n)
				}
				for _, l := range leases {
					l.Release(access.Usage{})
				}
				b.StartTimer()
			}
		})
	}
}
