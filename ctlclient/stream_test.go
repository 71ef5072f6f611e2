package ctlclient

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/wire"
)

// A push stream that drops, repeats and delays its events past each other ends
// where a full pull would: by the deltas' versions and the pull every 60 s.
func TestR20_StreamThatDropsRepeatsAndReorders(t *testing.T) {
	seeds := 3
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
				r := rand.New(rand.NewPCG(uint64(seed), 7))
				truth := map[int]string{} // row number → application
				version := uint64(1)
				publish := func() {
					var rows []string
					for n, app := range truth {
						rows = append(rows, grantRow(n, app))
					}
					c.mu.Lock()
					policies := c.policies
					c.mu.Unlock()
					c.setLists(version, w.grants(version, rows...), 1, policies)
				}
				publish()
				g := newGateway(t, cfg)
				defer run(t, g.Run)()
				time.Sleep(5 * time.Second)

				type late struct {
					at   int
					id   string
					line []byte
				}
				var waiting []late
				dropped, repeated, delayed := 0, 0, 0
				send := func(id string, line []byte) { c.push(id, "delta", line) }
				for step := range 150 {
					d := wire.Delta{From: version, To: version + 1}
					for range 1 + r.IntN(3) {
						n := 1 + r.IntN(40)
						if _, ok := truth[n]; ok && r.IntN(2) == 0 {
							delete(truth, n)
							d.Remove = append(d.Remove, pairs(n)...)
							d.Grants = slices.DeleteFunc(d.Grants, func(g wire.Grant) bool { return g.UserID == pairs(n)[0].UserID })
							continue
						}
						truth[n] = fmt.Sprintf("APP%08d", 1+r.IntN(5))
						var row wire.Grant
						must(t, json.Unmarshal([]byte(grantRow(n, truth[n])), &row))
						d.Remove = slices.DeleteFunc(d.Remove, func(p wire.PairRef) bool { return p == pairs(n)[0] })
						d.Grants = slices.DeleteFunc(d.Grants, func(g wire.Grant) bool { return g.UserID == row.UserID })
						d.Grants = append(d.Grants, row)
					}
					version++
					publish()
					line, id := w.delta(d), fmt.Sprint(version)
					switch p := r.IntN(100); {
					case p < 15:
						dropped++
					case p < 30:
						repeated++
						send(id, line)
						send(id, line)
						waiting = append(waiting, late{step + 1 + r.IntN(4), id, line})
					case p < 55:
						delayed++
						waiting = append(waiting, late{step + 1 + r.IntN(5), id, line})
					default:
						send(id, line)
					}
					waiting = slices.DeleteFunc(waiting, func(l late) bool {
						if l.at > step {
							return false
						}
						send(l.id, l.line)
						return true
					})
					time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
				}
				time.Sleep(2 * time.Minute)
				e.mu.Lock()
				have := map[int]string{}
				for _, row := range e.rows {
					var n int
					_, err := fmt.Sscanf(row.UserID, "USR%d", &n)
					must(t, err)
					have[n] += strings.Join(row.AppIDList, ",")
				}
				e.mu.Unlock()
				s := g.Status()
				if !maps.Equal(have, truth) || s.GrantsVersion != version {
					t.Errorf("version %d of %d\nhave %v\nwant %v", s.GrantsVersion, version, have, truth)
				}
				if s.Refused != 0 || s.Failures != 0 {
					t.Errorf("%d lists refused (%s), %d connections lost", s.Refused, s.LastRefusal, s.Failures)
				}
				t.Logf("150 changes: %d dropped, %d repeated, %d delayed; %d lists fetched", dropped, repeated, delayed, c.pulls)
			})
		})
	}
}

// What the second part of a change takes away is out for good: the delta that
// follows does not bring it back.
func TestPartsOfAChangeAreTakenOut(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		c.setLists(5, w.grants(5, grantRow(1), grantRow(2), grantRow(3)), 1, c.policies)
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		c.push("", "delta", w.delta(wire.Delta{From: 5, To: 6, Remove: pairs(1)}))
		c.push("6", "delta", w.delta(wire.Delta{From: 5, To: 6, Remove: pairs(2)}))
		time.Sleep(time.Second)
		e.mu.Lock()
		second := e.deltas[len(e.deltas)-1]
		e.mu.Unlock()
		if second.NarrowOnly || second.From != 6 || second.To != 6 || len(second.Rows) != 0 {
			t.Errorf("the second part came as %+v", second)
		}
		if e.users() != "USR00000003" {
			t.Errorf("users %q", e.users())
		}
	})
}
