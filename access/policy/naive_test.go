package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// naive answers from the lists as they were sent, straight from the text of the
// rules, with nothing of the compiled form. It knows valid lists only: faults
// have tests of their own.
func naive(in Input, f Facts, appID string, r Request, now time.Time) bool {
	if in.NoList || !in.NotAfter.IsZero() && !now.Before(in.NotAfter) {
		return false
	}
	device := f.DeviceID
	if f.Browser {
		device = BrowserDevice
	}
	for _, l := range in.Locks {
		subject := map[string]string{"user": f.UserID, "device": device, "agent": f.AgentID, "session": f.SessionID, "app": appID}[l.Kind]
		if l.ID == subject && (l.Until.IsZero() || now.Before(l.Until)) {
			return false
		}
	}
	i := slices.IndexFunc(in.Apps, func(a App) bool { return a.ID == appID })
	if i < 0 {
		return false
	}
	app := in.Apps[i]
	var row *Row
	for i := range in.Grants {
		g := &in.Grants[i]
		if g.UserID == f.UserID && g.DeviceID == device && (f.Browser || f.Token == "" || f.Token == g.AuthenticationToken) {
			row = g
		}
	}
	if row == nil || !f.Browser && device == BrowserDevice {
		return false
	}
	end, err := time.Parse(time.RFC3339, row.ExpirationDate)
	if err != nil || !now.Before(end) || !slices.Contains(row.AppIDList, appID) || app.RefuseBrowser && f.Browser {
		return false
	}
	lvl := f.Level
	if lvl == 0 || row.Level != 0 && row.Level < lvl {
		lvl = row.Level
	}
	if lvl < app.Level {
		return false
	}
	ask := naiveAsk{f: f, row: row, level: lvl, r: r, now: now}
	return ask.layer(in.Policies, appID) && ask.layer(in.Ceiling, appID)
}

type naiveAsk struct {
	f     Facts
	row   *Row
	level int
	r     Request
	now   time.Time
}

func (n naiveAsk) layer(policies []wire.Policy, appID string) bool {
	bound := map[string][]string{}
	for _, p := range policies {
		if p.PolicyType == "bind" {
			id, scopes, _ := strings.Cut(p.PolicyData, " ")
			bound[id] = append(bound[id], strings.Split(scopes, ",")...)
		}
	}
	groups := map[string]bool{} // scope and type -> one alternative holds
	for _, p := range policies {
		if p.PolicyType == "bind" {
			continue
		}
		holds := n.holds(p)
		scopes, ok := bound[p.PolicyID]
		if !ok && !holds {
			return false // stands alone
		}
		for _, sc := range scopes {
			if sc != "*" && sc != appID && sc != n.f.UserID+"/"+appID && sc != n.f.UserID+"/*" {
				continue
			}
			if p.PolicyType == "ipdeny" && !holds {
				return false
			}
			groups[sc+" "+p.PolicyType] = groups[sc+" "+p.PolicyType] || holds
		}
	}
	for _, holds := range groups {
		if !holds {
			return false
		}
	}
	return true
}

func (n naiveAsk) score(session, row Score, worse func(a, b int) int) (int, bool) {
	a, okA := session.Value()
	b, okB := row.Value()
	switch {
	case okA && okB:
		return worse(a, b), true
	case okA:
		return a, true
	}
	return b, okB
}

func (n naiveAsk) holds(p wire.Policy) bool {
	data := p.PolicyData
	inPrefixes := func() bool {
		for _, s := range strings.Split(data, ",") {
			if netip.MustParsePrefix(s).Contains(n.r.Remote) {
				return true
			}
		}
		return false
	}
	atoi := func(s string) int { v, _ := strconv.Atoi(s); return v }
	switch p.PolicyType {
	case "ipallow":
		return n.r.Remote.IsValid() && inPrefixes()
	case "ipdeny":
		return n.r.Remote.IsValid() && !inPrefixes()
	case "time": // "D-D HHMM-HHMM +HH", not over midnight
		f := strings.Fields(data)
		zone := time.FixedZone("", atoi(strings.TrimPrefix(f[2], "+"))*3600)
		t := n.now.In(zone)
		wd := (int(t.Weekday())+6)%7 + 1
		hm := t.Hour()*100 + t.Minute()
		return wd >= atoi(f[0][:1]) && wd <= atoi(f[0][2:]) && hm >= atoi(f[1][:4]) && hm < atoi(f[1][5:])
	case "posture":
		v, ok := n.score(n.f.Posture, n.row.Posture, func(a, b int) int { return min(a, b) })
		return ok && v >= atoi(data[2:])
	case "risk":
		v, ok := n.score(n.f.Risk, n.row.Risk, func(a, b int) int { return max(a, b) })
		return ok && v <= atoi(data[2:])
	case "level":
		return n.level >= atoi(data)
	case "mfa":
		have := n.f.Factors.Types()
		if len(have) == 0 {
			have = n.row.Factors.Types()
		} else if rowTypes := n.row.Factors.Types(); len(rowTypes) > 0 {
			have = slices.DeleteFunc(have, func(t int) bool { return !slices.Contains(rowTypes, t) })
		}
		for _, s := range strings.Split(data, ",") {
			if !slices.Contains(have, atoi(s)) {
				return false
			}
		}
		return true
	case "authage":
		at := n.f.AuthTime
		if at.IsZero() || !n.row.AuthTime.IsZero() && n.row.AuthTime.Before(at) {
			at = n.row.AuthTime
		}
		d, err := time.ParseDuration(data)
		if err != nil {
			panic(err)
		}
		return !at.IsZero() && !at.After(n.now.Add(time.Minute)) && n.now.Before(at.Add(d))
	case "tls":
		return slices.Contains(strings.Split(data, ","), n.r.Protocol.String())
	case "app": // "METHOD /prefix/*"
		m, path, _ := strings.Cut(data, " ")
		return n.r.Method != "" && (m == "*" || m == n.r.Method) && strings.HasPrefix(n.r.Path, strings.TrimSuffix(path, "*"))
	case "rate", "maxconn":
		return !strings.HasPrefix(data, "0")
	}
	panic(fmt.Sprintf("naive interpreter: type %q", p.PolicyType))
}
