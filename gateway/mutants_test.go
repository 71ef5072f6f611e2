package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// right is what a row of Table 7 gives.
type right struct{ user, device, app string }

// bench is a gateway that was built and does not run, to be given lists.
type bench struct {
	*world
	g *Gateway
	v *ctlclient.Verifier
}

func newBench(t *testing.T) *bench {
	w := newWorld(t)
	g, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet()})
	must(t, err)
	t.Cleanup(g.close)
	roots, err := w.keys.Root(keystore.ListRoot)
	must(t, err)
	dec, err := w.keys.Decrypter(keystore.Enc)
	must(t, err)
	v, err := ctlclient.NewVerifier(ctlclient.VerifierConfig{GatewayID: gwID, DeviceID: gwDev, Roots: roots, Decrypter: dec})
	must(t, err)
	return &bench{w, g, v}
}

// allowed asks the gateway for every right that anybody could have.
func (b *bench) allowed(users, devices []string) map[right]bool {
	out := map[right]bool{}
	for _, u := range users {
		for _, d := range devices {
			for _, a := range []string{app1, app2} {
				if b.g.access.Explain(policy.Facts{SessionID: "S", UserID: u, DeviceID: d}, a, policy.Request{Protocol: policy.TLS13}).Decision.Reason == reason.OK {
					out[right{u, d, a}] = true
				}
			}
		}
	}
	return out
}

func people(n int) (users, devices []string) {
	for i := range n {
		users = append(users, fmt.Sprintf("USR%08d", i+1))
		devices = append(devices, fmt.Sprintf("DEV%08d", i+1))
	}
	return users, devices
}

// R18, S5: of 1,000 mutants of a genuine list that would change everything none
// widens, none panics, and what is refused leaves what was in force as it was,
// with an alert of the highest level.
func TestR18_S5_ThousandMutantsOfAListWidenNothing(t *testing.T) {
	b := newBench(t)
	users, devices := people(6)
	rows := func(app string, from, to int) (out []string) {
		for i := from; i < to; i++ {
			out = append(out, users[i]+" "+devices[i]+" "+app)
		}
		return out
	}
	old := b.list(b.control, gwID, wire.GrantsList, 5, rows(app1, 0, 3)...)
	next := b.list(b.control, gwID, wire.GrantsList, 6, rows(app2, 2, 6)...)
	policies := b.list(b.control, gwID, wire.PoliciesList, 6)
	foreign, err := lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	forged := b.list(b.party(foreign, "forger", certid.Identity{Control: ctlID}), gwID, wire.GrantsList, 7, rows(app1+","+app2, 0, 6)...)

	take := func(raw []byte, floor ctlclient.Floor) error {
		g, err := b.v.Grants(bytes.NewReader(raw), floor)
		if err != nil {
			return err
		}
		return b.g.lists.Grants(t.Context(), g)
	}
	must(t, take(old, ctlclient.Floor{}))
	first, err := b.v.Grants(bytes.NewReader(old), ctlclient.Floor{})
	must(t, err)
	floor := ctlclient.Floor{Version: 5, Digest: first.Digest}
	before := b.allowed(users, devices)
	hash := b.g.access.Snapshot().StateHash()
	if len(before) != 3 {
		t.Fatalf("before: %v", before)
	}
	signed := map[right]bool{}
	for i := 2; i < 6; i++ {
		signed[right{users[i], devices[i], app2}] = true
	}
	if e, _ := alert.Lookup(alert.ListRefused); e.Level != alert.Severe {
		t.Errorf("a refused list is of level %v", e.Level)
	}

	r := rand.New(rand.NewPCG(18, 5))
	lines := func(raw []byte) [][]byte { return bytes.SplitAfter(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n")) }
	pick := func() []byte { return [][]byte{old, next, policies, forged}[r.IntN(4)] }
	mutators := []func(m []byte) []byte{
		func(m []byte) []byte { m[r.IntN(len(m)-1)] ^= 1 << r.IntN(8); return m }, // the last byte is the line feed
		func(m []byte) []byte { m[r.IntN(len(m)-1)] = byte(r.Uint32()); return m },
		func(m []byte) []byte { return m[:r.IntN(len(m)-1)] },
		func(m []byte) []byte {
			i, j := r.IntN(len(m)), r.IntN(64)+1
			return slices.Delete(m, i, min(len(m), i+j))
		},
		func(m []byte) []byte {
			return slices.Insert(m, r.IntN(len(m)), bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(40))...)
		},
		func(m []byte) []byte {
			l := lines(m)
			i := r.IntN(len(l))
			return bytes.Join(slices.Insert(l, i, l[i]), nil)
		},
		func(m []byte) []byte { l := lines(m); slices.Reverse(l); return bytes.Join(l, nil) },
		func(m []byte) []byte { // a line of another list
			l, o := lines(m), lines(pick())
			l[r.IntN(len(l))] = o[r.IntN(len(o))]
			return bytes.Join(l, []byte("\n"))
		},
		func(m []byte) []byte { return append(m, pick()...) },
		func(m []byte) []byte { return append(pick(), m...) },
		func(m []byte) []byte { // a key twice
			return bytes.Replace(m, []byte(`"header":{`), []byte(`"header":{"receiver":"GW000000001",`), 1)
		},
		func(m []byte) []byte { return bytes.Replace(m, []byte(`"version":"6"`), []byte(`"version":"7"`), 1) },
		func(m []byte) []byte {
			return bytes.Replace(m, []byte(`"body":`), []byte(`"body":null,"`+strings.Repeat("x", 1<<20)+`":`), 1)
		},
		func(m []byte) []byte {
			return bytes.ReplaceAll(m, []byte(`"signature":"`), []byte(`"signature":"AAAA`))
		},
		func([]byte) []byte { return forged },
		func([]byte) []byte { return old[:len(old)-1] }, // and this one is no mutant: the list in force
	}
	refused, taken := map[reason.Reason]int{}, 0
	for i := range 1000 {
		kind := i % len(mutators)
		m := mutators[kind](bytes.Clone(next))
		if bytes.Equal(m, next) {
			continue
		}
		err := take(m, floor)
		after := b.allowed(users, devices)
		var le *ctlclient.ListError
		switch {
		case errors.As(err, &le):
			refused[le.Reason]++
			if !maps.Equal(after, before) || b.g.access.Snapshot().StateHash() != hash {
				t.Fatalf("mutant %d of kind %d was refused (%v), and what is allowed changed to %v", i, kind, err, after)
			}
		case err != nil:
			t.Fatalf("mutant %d of kind %d: %v", i, kind, err)
		default:
			taken++
			for x := range after {
				if !signed[x] && !before[x] || kind != len(mutators)-1 && !signed[x] {
					t.Fatalf("mutant %d of kind %d widened: %v", i, kind, x)
				}
			}
			must(t, take(old, ctlclient.Floor{}))
		}
	}
	t.Logf("refused %v, taken %d", refused, taken)
	if taken > 1000/len(mutators)+20 || len(refused) < 6 {
		t.Errorf("the mutants do not do what they should")
	}
}

// R18: genuine lists whose rows are poisoned. What is allowed afterwards stands
// in a row, letter by letter, as a reader that knows nothing of Yumen finds it.
func TestR18_PoisonedRowsGrantNothing(t *testing.T) {
	b := newBench(t)
	users, devices := people(4)
	r := rand.New(rand.NewPCG(18, 6))
	good := func(i int) string {
		return fmt.Sprintf(`{"userId":%q,"deviceId":%q,"authenticationToken":"tok%08d","expirationDate":"2099-01-01T00:00:00Z","appIdList":[%q]}`,
			users[i], devices[i], i, []string{app1, app2}[r.IntN(2)])
	}
	poison := []func(s string) string{
		func(s string) string { i := r.IntN(len(s)); return s[:i] + string(rune(32+r.IntN(94))) + s[i+1:] },
		func(s string) string { return strings.Replace(s, "2099-01-01", "2020-01-01", 1) },
		func(s string) string { return strings.Replace(s, "2099", "９099", 1) },
		func(s string) string { return strings.Replace(s, `"userId"`, `"UserId"`, 1) },
		func(s string) string { return strings.Replace(s, `["APP`, `["*","APP`, 1) },
		func(s string) string { return strings.Replace(s, `["APP`, `["APP00000001 ","APP`, 1) },
		func(s string) string {
			return strings.Replace(s, `"appIdList":[`, `"appIdList":null,"appIdlist":[`, 1)
		},
		func(s string) string { return strings.Replace(s, `"USR`, `"USR\u0000`, 1) },
		func(s string) string {
			return strings.Replace(s, `"DEV00000001"`, `["DEV00000001","DEV00000002"]`, 1)
		},
		func(s string) string { return `[` + s + `]` },
		func(s string) string { return `null` },
	}
	version := uint64(10)
	lists, bad := 0, 0
	for range 150 {
		var rows []string
		for i := range users {
			row := good(i)
			if r.IntN(2) == 0 {
				if p := poison[r.IntN(len(poison))](row); jsontext.Value(p).IsValid() {
					row = p
				}
			}
			rows = append(rows, "{"+strings.TrimPrefix(row, "{")) // the harness takes what begins so as it is
			if !jsontext.Value(rows[len(rows)-1]).IsValid() {
				rows[len(rows)-1] = "{}"
			}
		}
		version++
		g, err := b.v.Grants(bytes.NewReader(b.list(b.control, gwID, wire.GrantsList, version, rows...)), ctlclient.Floor{})
		if err != nil {
			continue // refused whole: nothing of it counts
		}
		lists++
		bad += len(g.Faults)
		must(t, b.g.lists.Grants(t.Context(), g))
		stands := map[right]bool{}
		for _, row := range rows {
			var v map[string]any
			if json.Unmarshal([]byte(row), &v) != nil {
				continue
			}
			u, _ := v["userId"].(string)
			d, _ := v["deviceId"].(string)
			list, _ := v["appIdList"].([]any)
			for _, a := range list {
				a, _ := a.(string)
				stands[right{u, d, a}] = true
			}
		}
		for x := range b.allowed(users, devices) {
			if !stands[x] {
				t.Fatalf("%v is allowed and stands in no row of\n%s", x, strings.Join(rows, "\n"))
			}
		}
	}
	t.Logf("%d lists taken, %d bad rows", lists, bad)
	if lists < 50 || bad < 20 {
		t.Error("the rows are not poisoned enough")
	}
}

// S34: a bad row never delays a revocation: what the same change takes away is
// cut at once.
func TestS34_BadRowDelaysNoRevocation(t *testing.T) {
	b := newBench(t)
	users, devices := people(3)
	var rows []string
	for i := range users {
		rows = append(rows, users[i]+" "+devices[i]+" "+app1)
	}
	g, err := b.v.Grants(bytes.NewReader(b.list(b.control, gwID, wire.GrantsList, 9, rows...)), ctlclient.Floor{})
	must(t, err)
	must(t, b.g.lists.Grants(t.Context(), g))
	fault := ctlclient.RowFault{Row: 0, ID: users[1] + "/" + devices[1], Err: errors.New("no date")}
	must(t, b.g.lists.Delta(t.Context(), &ctlclient.Delta{
		From: 9, To: 10, Remove: []wire.PairRef{{UserID: users[0], DeviceID: devices[0]}, {UserID: users[1], DeviceID: devices[1]}}, Faults: []ctlclient.RowFault{fault},
	}))
	if got := b.allowed(users, devices); len(got) != 1 || !got[right{users[2], devices[2], app1}] {
		t.Errorf("allowed: %v, want only the last", got)
	}
}

// The second part of a change is taken out, so that the next delta does not
// bring it back.
func TestSecondPartOfAChangeStaysOut(t *testing.T) {
	b := newBench(t)
	users, devices := people(3)
	var rows []string
	for i := range users {
		rows = append(rows, users[i]+" "+devices[i]+" "+app1)
	}
	g, err := b.v.Grants(bytes.NewReader(b.list(b.control, gwID, wire.GrantsList, 9, rows...)), ctlclient.Floor{})
	must(t, err)
	must(t, b.g.lists.Grants(t.Context(), g))
	pair := func(i int) []wire.PairRef { return []wire.PairRef{{UserID: users[i], DeviceID: devices[i]}} }
	for _, d := range []*ctlclient.Delta{{From: 9, To: 10, Remove: pair(0)}, {From: 10, To: 10, Remove: pair(1)}, {From: 10, To: 11}} {
		must(t, b.g.lists.Delta(t.Context(), d))
	}
	if got := b.allowed(users, devices); len(got) != 1 {
		t.Errorf("allowed: %v, want only the last", got)
	}
}

// A list file of a version that was seen must be the one that was seen, also
// after a restart.
func TestS4_ListFileOfTheSameVersionWithOtherContent(t *testing.T) {
	w := newWorld(t)
	w.lists(5, 5, user+" "+dev+" "+app1)
	w.start()
	alice := w.client(w.alice())
	w.want(alice, "https://one.test/", 200, "")
	seen, err := os.ReadFile(filepath.Join(w.dir, "state", "list-files.json"))
	must(t, err)
	w.lists(5, 5, user+" "+dev+" "+app1+","+app2)
	if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), "list_older") {
		t.Errorf("reload: %v", err)
	}
	w.want(alice, "https://two.test/", 403, "YM-303")
	if w.raised(alert.ListRefused) == 0 {
		t.Error("no alert")
	}
	if now, err := os.ReadFile(filepath.Join(w.dir, "state", "list-files.json")); err != nil || !bytes.Equal(now, seen) {
		t.Errorf("the stored versions changed: %s, %v", now, err)
	}
	must(t, w.stop())
	if _, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet()}); err == nil || !strings.Contains(err.Error(), "list_older") {
		t.Errorf("start: %v", err)
	}
	w.lists(5, 5, user+" "+dev+" "+app1) // signed anew, the same content
	g, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet()})
	must(t, err)
	g.close()
}
