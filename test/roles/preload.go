package roles

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/crypto/keystore"
)

// Preload puts n rows into the control center's list of grants: users who are
// signed in, each with a device and an application. It must not run.
func (s *Site) Preload(n int) (err error) {
	pass, err := keystore.ReadPassphrase(s.control.PassphraseFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.control.DataDir, 0o700); err != nil {
		return err
	}
	base, err := store.OpenBolt(store.BoltConfig{Path: filepath.Join(s.control.DataDir, "store.db")})
	if err != nil {
		return err
	}
	defer func() {
		if e := base.Close(); err == nil {
			err = e
		}
	}()
	st, err := store.Seal(base, pass)
	if err != nil {
		return err
	}
	var ops []store.Op
	put := func(key string, v any) {
		raw, e := json.Marshal(v)
		if e != nil && err == nil {
			err = e
		}
		ops = append(ops, store.Put(key, raw))
	}
	put(model.KeyApp+"APPBULK0001", model.App{ID: "APPBULK0001", Name: "bulk"})
	end := time.Now().Add(12 * time.Hour)
	for i := range n {
		u, d, a := fmt.Sprintf("USRB%07d", i), fmt.Sprintf("DEVB%07d", i), fmt.Sprintf("AGTB%07d", i)
		put(model.KeyUser+u, model.User{ID: u, Name: u})
		put(model.KeyParty+a, model.Party{Kind: model.Agent, ID: a, DeviceID: d})
		put(model.KeyGrant+"G"+u, model.Grant{ID: "G" + u, UserID: u, Device: model.AnyDevice, Apps: []string{"APPBULK0001"}})
		put(model.SessionKey(model.Pair{User: u, Device: d}), model.Session{UserID: u, DeviceID: d, AgentID: a, Token: fmt.Sprintf("TOKB%07d", i), Expires: end, Ends: end})
		if err == nil && (len(ops) >= 16000 || i == n-1) {
			_, err = st.Txn(nil, ops)
			ops = ops[:0]
		}
		if err != nil {
			return err
		}
	}
	return nil
}
