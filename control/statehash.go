package control

import (
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

const (
	// settle is how long a change may be under way before gateway and control
	// center must agree on it.
	settle = 5 * time.Second
	// replayed is the age from which a report tells of the past.
	replayed = 2 * time.Minute
)

// compare holds what a gateway has in force against what it was given, and
// returns the lists that differ and should be fetched whole. reported is the
// time of the report. What cannot be compared, for it is older than the changes
// that are kept or still under way, is taken as agreed: the next report tells.
func (s *Server) compare(c *call, reported string) []wire.ListName {
	raw := c.Header.Ext[wire.ExtStateHash]
	if raw == nil {
		return nil
	}
	var h wire.StateHash
	if err := json.Unmarshal(raw, &h); err != nil {
		s.log.Warn("state hash cannot be read", zap.String("gateway_id", c.ID), zap.Error(err))
		return nil
	}
	now := s.cfg.Now()
	if at, err := wire.ParseTime(reported); err != nil || now.Sub(at) > replayed {
		return nil
	}
	var grants, policies known
	s.view(func(st *model.State) {
		grants = known{st.GrantsVersion, st.GrantsSum, st.GrantsAt}
		policies = known{st.PoliciesVersion, st.PoliciesSum, st.PoliciesAt}
	})
	if h.Grants.Version != grants.version {
		grants = s.hub.grantsAt(h.Grants.Version)
	}
	var differ []wire.ListName
	if grants.differs(h.Grants, now) {
		differ = append(differ, wire.GrantsList)
	}
	if policies.differs(h.Policies, now) {
		differ = append(differ, wire.PoliciesList)
	}
	if len(differ) == 0 {
		return nil
	}
	s.stats.differed.Add(1)
	versions := map[wire.ListName]uint64{wire.GrantsList: h.Grants.Version, wire.PoliciesList: h.Policies.Version}
	var order []wire.ListName
	s.hub.with(c.ID, func(l *link) {
		l.differed++
		for _, name := range differ {
			// Once a version: a row that the gateway cannot take will not agree
			// however often it is fetched.
			if l.ordered[name] != versions[name] {
				if l.ordered == nil {
					l.ordered = map[wire.ListName]uint64{}
				}
				l.ordered[name] = versions[name]
				order = append(order, name)
			}
		}
	})
	for _, name := range differ {
		s.log.Error("gateway has something else in force", zap.String("gateway_id", c.ID), zap.String("list", string(name)),
			zap.Uint64("version", versions[name]), zap.Bool("fetch_ordered", slices.Contains(order, name)))
	}
	s.cfg.Alerts.Raise(alert.Alert{Code: alert.StateDiffers, Time: now, DeviceID: c.DeviceID, Detail: c.ID + ": " + joinNames(differ)})
	return order
}

// known is a list at a version, as this control center believes it.
type known struct {
	version uint64 // 0: not known
	sum     wire.Sum
	at      time.Time
}

func (k known) differs(got wire.VersionHash, now time.Time) bool {
	return k.version != 0 && got.Version == k.version && got.Hash != k.sum.String() && now.Sub(k.at) >= settle
}

// grantsAt returns the grants of a past version, if the ring still has it.
func (h *hub) grantsAt(version uint64) known {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, found := slices.BinarySearchFunc(h.ring, version, func(c published, v uint64) int {
		switch {
		case c.Rev < v:
			return -1
		case c.Rev > v:
			return 1
		}
		return 0
	})
	if !found || !h.ring[i].Grants {
		return known{}
	}
	return known{version, h.ring[i].GrantsSum, h.ring[i].At}
}

func joinNames(names []wire.ListName) string {
	out := ""
	for i, n := range names {
		if i > 0 {
			out += ", "
		}
		out += string(n)
	}
	return out
}
