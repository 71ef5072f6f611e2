package ctlclient

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
)

// A control center that fails at one record for ever holds up the class for some
// minutes; then the record is a gap that both sides name, and an alert, and the
// others are there. One that fails at everything for a day loses nothing.
func TestGCR002_M49_ARecordThatTheControlCenterFailsAtBlocksNothingForEver(t *testing.T) {
	for _, broken := range []bool{false, true} {
		t.Run(fmt.Sprintf("at everything %v", broken), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				center := &modelCenter{once: map[string]modelReply{}, broken: broken}
				way := &path{m: center, draw: func() string { return "through" }}
				var own []alert.Alert
				rep := &reporter{sender: modelSender, post: way.post, log: zap.NewNop(), now: time.Now, path: map[string]string{"T11": "/alerts"}, sent: map[string]time.Time{},
					own: alert.Func(func(a alert.Alert) { own = append(own, a) })}
				d := NewDurable(DurableConfig{Dir: t.TempDir(), Key: fixedKey, Reserve: -1})
				must(t, d.Open())
				defer d.Close()
				rep.out = d
				ctx := context.Background()
				for i, text := range []string{"plain", "plain", "fails for ever", "plain", "plain"} {
					if broken {
						text = "plain"
					}
					raw, err := json.Marshal(Report{Type: "T11", MsgID: fmt.Sprintf("m%d", i), At: time.Now(), Body: jsontext.Value(fmt.Sprintf(`{"exceptionAlertType":"3.001","text":%q}`, text))})
					must(t, err)
					_, err = d.Append(ctx, ClassAlert, raw)
					must(t, err)
				}
				began, tries := time.Now(), 0
				session := func() error { // as the link does
					tries++
					ch, err := rep.newChain(ctx)
					if err == nil {
						err = ch.run(ctx, ClassAlert, true)
					}
					return err
				}
				for session() != nil && time.Since(began) < 24*time.Hour {
					if n := center.gaps; n != 0 {
						t.Fatalf("%d records were given up after %v", n, time.Since(began))
					}
					time.Sleep(time.Minute)
				}
				took := time.Since(began)
				if broken {
					if took < 24*time.Hour {
						t.Errorf("it went on after %v", took)
					}
					center.broken = false
					must(t, session())
					if want := []string{"m0", "m1", "m2", "m3", "m4"}; !slices.Equal(center.effects, want) || center.gaps != 0 || len(own) != 0 {
						t.Errorf("after a day: effects %v, %d gaps, alerts %v; want %v and nothing else", center.effects, center.gaps, own, want)
					}
					return
				}
				if took < stuckFor || took > 2*stuckFor || tries < stuckTries {
					t.Errorf("given up after %v and %d tries", took, tries)
				}
				effects := slices.Sorted(slices.Values(center.effects))
				if want := []string{"m0", "m1", "m3", "m4"}; !slices.Equal(effects, want) || center.gaps != 1 || center.upTo != d.spool.Last(classOf(ClassAlert)) {
					t.Errorf("effects %v, %d gaps, up to %d; want %v, one gap", effects, center.gaps, center.upTo, want)
				}
				if len(own) != 1 || own[0].Code != alert.MessageRefused {
					t.Errorf("alerts %v, want one of a report that was refused", own)
				}
			})
		})
	}
}
