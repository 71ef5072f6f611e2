package control

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
)

// bulkRows puts n rows into the list, in few transactions.
func bulkRows(t testing.TB, s *Server, n int) {
	t.Helper()
	entry := func(key string, v any) store.Op {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return store.Put(key, raw)
	}
	now := s.cfg.Now()
	if _, err := s.commit(nil, entry(model.KeyApp+"APPBULK0001", model.App{ID: "APPBULK0001", Name: "bulk"})); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < n; {
		var ops []store.Op
		for ; i < n && len(ops) < 16000; i++ {
			u, d, a := fmt.Sprintf("USRB%07d", i), fmt.Sprintf("DEVB%07d", i), fmt.Sprintf("AGTB%07d", i)
			ops = append(ops, entry(model.KeyUser+u, model.User{ID: u, Name: u}),
				entry(model.KeyParty+a, model.Party{Kind: model.Agent, ID: a, DeviceID: d}),
				entry(model.KeyGrant+"G"+u, model.Grant{ID: "G" + u, UserID: u, Device: model.AnyDevice, Apps: []string{"APPBULK0001"}}),
				entry(model.SessionKey(model.Pair{User: u, Device: d}), model.Session{UserID: u, DeviceID: d, AgentID: a,
					Token: fmt.Sprintf("TOKB%07d", i), Expires: now.Add(time.Hour), Ends: now.Add(time.Hour)}))
		}
		if _, err := s.commit(nil, ops...); err != nil {
			t.Fatal(err)
		}
	}
}
