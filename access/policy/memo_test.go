package policy

import (
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// A subject that was asked before is answered as one that never was, whatever
// it was asked, of which snapshot, and in whichever order the times come.
func TestRememberedEqualsAnew(t *testing.T) {
	remembered := 0
	rapid.Check(t, func(t *rapid.T) {
		a, _ := Build(genInput(t))
		b, _ := Build(genInput(t))
		f, r, app := genFacts(t), genRequest(t), "APP00000001"
		for range 8 { // facts and a request that are allowed, if they can be found
			if verdict(a, f, app, r, epoch).Reason == reason.OK {
				break
			}
			f, r = genFacts(t), genRequest(t)
		}
		sub := testKey.Subject(f)
		for range 40 {
			if pick(t, "other request", false, false, true) {
				r = genRequest(t)
			}
			if pick(t, "other app", false, false, false, true) {
				app = pick(t, "app", testApps...)
			}
			s := pick(t, "snapshot", a, a, a, b)
			now := epoch.Add(pick(t, "now", 0, time.Nanosecond, 30*time.Second, time.Minute, 2*time.Hour, 17*time.Hour))
			q := question{}
			q.ask(&r, now.UnixNano())
			if _, _, ok := sub.memo.find(memoKey(s.serial, uint32(s.App(app)), &q), &q); ok {
				remembered++
			}
			if got, want := s.Decide(sub, s.App(app), &r, now), verdict(s, f, app, r, now); got != want {
				t.Fatalf("asked again %+v, asked first %+v", got, want)
			}
		}
	})
	t.Logf("%d answers were remembered", remembered)
	if remembered < 50 {
		t.Errorf("only %d answers were remembered: the test proves little", remembered)
	}
}

// Readers and writers of one subject's memo never mix two answers.
func TestMemoOfManyGoroutines(t *testing.T) {
	near, far := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("192.0.2.7")
	in := Input{Key: testKey, Apps: []App{{ID: "APP00000001"}, {ID: "APP00000002"}},
		Grants: []Row{{Grant: wire.Grant{UserID: "USR00000001", DeviceID: "DEV00000001", AuthenticationToken: "T",
			ExpirationDate: epoch.Add(time.Hour).Format(time.RFC3339), AppIDList: []string{"APP00000001", "APP00000002"}}}},
		Policies: []wire.Policy{{PolicyID: "POL00000001", PolicyName: "p", PolicyType: "ipallow", PolicyData: "10.0.0.0/8"},
			{PolicyID: "BND00000001", PolicyType: "bind", PolicyData: "POL00000001 APP00000001"}}}
	s, _ := Build(in)
	sub := testKey.Subject(Facts{UserID: "USR00000001", DeviceID: "DEV00000001", Token: "T"})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20_000 {
				app, from := "APP00000001", near
				if (i+g)%2 == 0 {
					app = "APP00000002"
				}
				if (i/2+g)%2 == 0 {
					from = far
				}
				got := s.Decide(sub, s.App(app), &Request{Remote: from, Protocol: TLCP}, epoch).Reason == reason.OK
				if want := app == "APP00000002" || from == near; got != want {
					t.Errorf("%s from %v: %v", app, from, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestMemoIsOneCacheLine(t *testing.T) {
	var s Subject
	if n := unsafe.Sizeof(s.memo); n != 64 || unsafe.Offsetof(s.memo) != 0 {
		t.Errorf("memo has %d bytes at %d, want 64 at 0", n, unsafe.Offsetof(s.memo))
	}
	if n := unsafe.Sizeof(s); n%64 != 0 {
		t.Errorf("Subject has %d bytes, no multiple of 64", n)
	}
}
