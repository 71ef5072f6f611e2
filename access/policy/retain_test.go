package policy

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/yumen-zt/yumen/wire"
)

// A list that has been replaced, as a whole or in part, is let go: a gateway
// takes one every few minutes for years.
func TestR21_ReplacedSnapshotsAreLetGo(t *testing.T) {
	row := func(n int) Row {
		return Row{Grant: wire.Grant{UserID: fmt.Sprintf("USR%08d", n), DeviceID: fmt.Sprintf("DEV%08d", n), AuthenticationToken: fmt.Sprintf("token%06d", n),
			ExpirationDate: wire.FormatTime(time.Now().Add(time.Hour)), AppIDList: []string{"APP00000001"}}}
	}
	page := make([]Row, 3000)
	for i := range page {
		page[i] = row(i)
	}
	cur, _ := Build(Input{Apps: []App{{ID: "APP00000001"}}, Grants: page, Version: 1})
	var old []weak.Pointer[Snapshot]
	for i := range 6 {
		old = append(old, weak.Make(cur))
		b := cur.Edit() // a delta, which shares most with the one before
		if i%2 == 0 {
			b = cur.Renew() // a whole list
			b.AddPage(page)
		} else {
			b.Put(row(1))
		}
		b.SetVersion(uint64(i + 2))
		cur, _ = b.Finish()
	}
	for range 3 {
		runtime.GC()
	}
	for i, w := range old {
		if w.Value() != nil {
			t.Errorf("snapshot %d is held by the one that replaced it", i)
		}
	}
	if rows, _, _ := cur.Counts(); rows != len(page) {
		t.Errorf("%d rows, want %d", rows, len(page))
	}
	runtime.KeepAlive(cur)
}
