package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/internal/adminsock"
)

func (s *Server) listGrants() []*model.Grant {
	var out []*model.Grant
	s.view(func(st *model.State) { out = slices.Collect(maps.Values(st.Grants)) })
	slices.SortFunc(out, func(a, b *model.Grant) int { return cmp.Compare(a.ID, b.ID) })
	return append([]*model.Grant{}, out...)
}

// NewGrant is the request to grant applications.
type NewGrant struct {
	User   string    `json:"user"`   // userId or name
	Device string    `json:"device"` // a deviceId, any (default) or browser
	Apps   []string  `json:"apps"`
	Until  time.Time `json:"until,omitzero"`
}

func (s *Server) addGrant(r *http.Request) (any, error) {
	var in NewGrant
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	if in.Device == "" {
		in.Device = model.AnyDevice
	}
	if len(in.Apps) == 0 {
		return nil, errors.New("apps: at least one application is needed (an empty list grants nothing)")
	}
	if !in.Until.IsZero() && !in.Until.After(s.cfg.Now().Add(model.EarlyEnd)) {
		return nil, fmt.Errorf("until %s: it is over", in.Until.Format(time.RFC3339))
	}
	id, rev, err := s.create("GRT", "", func(st *model.State, id string) (string, any, error) {
		user, err := userID(st, in.User)
		if err != nil {
			return "", nil, err
		}
		if in.Device != model.AnyDevice && in.Device != model.BrowserDevice {
			p, err := partyOf(st, in.Device)
			if err != nil {
				return "", nil, fmt.Errorf("%w; or say any or browser", err)
			}
			in.Device = p.DeviceID
		}
		for _, a := range in.Apps {
			if st.Apps[a] == nil {
				return "", nil, notFoundError(fmt.Sprintf("no application %q (yumen control app list shows them)", a))
			}
		}
		return model.KeyGrant + id, &model.Grant{ID: id, UserID: user, Device: in.Device, Apps: in.Apps, Until: in.Until.Truncate(time.Second)}, nil
	})
	return Done{id, rev}, err
}

func (s *Server) removeGrant(r *http.Request) (any, error) {
	id := r.PathValue("id")
	rev, err := s.remove(model.KeyGrant+id, notFoundError(fmt.Sprintf("no grant %q (yumen control grant list shows them)", id)), nil)
	return Done{id, rev}, err
}

func (s *Server) listLocks() []*model.Lock {
	out := []*model.Lock{}
	s.view(func(st *model.State) { out = append(out, st.SortedLocks()...) })
	return out
}

// NewLock is the request to lock something.
type NewLock struct {
	Kind    string        `json:"kind"` // user, device, agent, app or session
	ID      string        `json:"id"`   // users and devices by name or identifier
	Message string        `json:"message,omitempty"`
	Until   time.Time     `json:"until,omitzero"`
	Wait    time.Duration `json:"wait_ns,omitzero"` // for the gateways; at most 30 s
}

// Locked is the answer: which gateways have it in force.
type Locked struct {
	Done
	Committed time.Duration `json:"committed_ns"` // from the request to the durable commit
	Gateways  []Acked       `json:"gateways,omitempty"`
}

// lock shuts something out. In one transaction the lock comes into force, the
// authentications that it concerns end, and a user's browser sessions are
// revoked: what has to be cut does not come back with the unlock.
func (s *Server) lock(r *http.Request) (any, error) {
	var in NewLock
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	if !slices.Contains(model.LockKinds, in.Kind) || in.ID == "" || strings.Contains(in.ID, "/") {
		return nil, fmt.Errorf("lock %s %q: one of %s and an identifier are needed", in.Kind, in.ID, strings.Join(model.LockKinds, ", "))
	}
	if len([]rune(in.Message)) > 200 {
		return nil, errors.New("message: at most 200 characters")
	}
	now, began := s.cfg.Now(), time.Now()
	if !in.Until.IsZero() && !in.Until.After(now) {
		return nil, fmt.Errorf("until %s: it is over", in.Until.Format(time.RFC3339))
	}
	var out Locked
	rev, err := s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		ref, ops, err := s.lockTarget(st, in.Kind, in.ID)
		if err != nil {
			return nil, nil, err
		}
		out.ID = ref.Kind + " " + ref.ID
		raw, err := json.Marshal(&model.Lock{LockRef: ref, Message: in.Message, Since: now, Until: in.Until.Truncate(time.Second)})
		return nil, append([]store.Op{store.Put(model.LockKey(ref), raw)}, ops...), err
	})
	if err != nil {
		return nil, err
	}
	out.Version, out.Committed = rev, time.Since(began)
	if in.Kind == "user" {
		s.endLogins(strings.TrimPrefix(out.ID, "user "))
	}
	if in.Wait > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), min(in.Wait, 30*time.Second))
		defer cancel()
		out.Gateways = s.hub.waitAcks(ctx, rev, began)
	}
	return out, nil
}

// lockTarget resolves what a lock names, and what ends with it.
func (s *Server) lockTarget(st *model.State, kind, id string) (model.LockRef, []store.Op, error) {
	switch kind {
	case "user":
		user, err := userID(st, id)
		if err != nil {
			return model.LockRef{}, nil, err
		}
		return model.LockRef{Kind: kind, ID: user}, append(endOps(st.SessionsOf(user)), s.revocation(user)), nil
	case "device", "agent":
		p, err := partyOf(st, id)
		if err != nil {
			return model.LockRef{}, nil, err
		}
		ref := model.LockRef{Kind: kind, ID: p.DeviceID}
		if kind == "agent" {
			ref.ID = p.ID
		}
		if ref.ID == "" || kind == "agent" && p.Kind != model.Agent {
			return ref, nil, fmt.Errorf("%s is no %s (lock the app instead, or the device)", p.ID, kind)
		}
		return ref, endOps(st.SessionsOn(p.DeviceID)), nil
	case "app":
		if st.Apps[id] == nil {
			return model.LockRef{}, nil, notFoundError(fmt.Sprintf("no application %q (yumen control app list shows them)", id))
		}
	}
	return model.LockRef{Kind: kind, ID: id}, nil, nil
}

func (s *Server) unlock(r *http.Request) (any, error) {
	kind, id := r.PathValue("kind"), r.PathValue("id")
	ref := model.LockRef{Kind: kind, ID: id}
	s.view(func(st *model.State) {
		if st.Locks[ref] != nil {
			return
		}
		if found, _, err := s.lockTarget(st, kind, id); err == nil {
			ref = found
		}
	})
	if kind == "user" {
		_, lockedOut := s.users.Locked(ref.ID)
		s.users.Forget(ref.ID) // the lock-out after wrong passwords, too
		var held bool
		s.view(func(st *model.State) { held = st.Locks[ref] != nil })
		if lockedOut && !held {
			return Done{ref.Kind + " " + ref.ID, s.revision()}, nil
		}
	}
	rev, err := s.remove(model.LockKey(ref), notFoundError(fmt.Sprintf("no lock on %s %q (yumen control locks shows them)", kind, id)), nil)
	return Done{ref.Kind + " " + ref.ID, rev}, err
}

// SessionInfo is an authentication without its token.
type SessionInfo struct {
	UserID   string    `json:"user_id"`
	DeviceID string    `json:"device_id"`
	AgentID  string    `json:"agent_id"`
	AuthTime time.Time `json:"auth_time"`
	Expires  time.Time `json:"expires"`
	Ends     time.Time `json:"ends"`
	Apps     []string  `json:"apps"`
}

func (s *Server) listSessions() []SessionInfo {
	out := []SessionInfo{}
	s.view(func(st *model.State) {
		for pair, v := range st.Sessions {
			i := SessionInfo{UserID: v.UserID, DeviceID: v.DeviceID, AgentID: v.AgentID, AuthTime: v.AuthTime, Expires: v.Expires, Ends: v.Ends, Apps: []string{}}
			if row := st.Rows[pair]; row != nil {
				i.Apps = row.Apps
			}
			out = append(out, i)
		}
	})
	slices.SortFunc(out, func(a, b SessionInfo) int {
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	return out
}

// endSession signs a user out of a device; it may sign in again.
func (s *Server) endSession(r *http.Request) (any, error) {
	var d Done
	var err error
	d.Version, err = s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		user, err := userID(st, r.PathValue("user"))
		if err != nil {
			return nil, nil, err
		}
		p, err := partyOf(st, r.PathValue("device"))
		if err != nil {
			return nil, nil, err
		}
		pair := model.Pair{User: user, Device: p.DeviceID}
		key := model.SessionKey(pair)
		if st.Sessions[pair] == nil {
			return nil, nil, notFoundError(fmt.Sprintf("%s is not signed in on %s (yumen control sessions shows who is)", user, p.DeviceID))
		}
		d.ID = pair.User + " " + pair.Device
		return []store.Compare{{Key: key, Modified: st.Modified[key]}}, []store.Op{store.Delete(key)}, nil
	})
	return d, err
}

// SubjectInfo is a mapped account with the key that removes it.
type SubjectInfo struct {
	Key string `json:"key"`
	model.Subject
}

func (s *Server) listSubjects() []SubjectInfo {
	out := []SubjectInfo{}
	s.view(func(st *model.State) {
		for key, v := range st.Subjects {
			out = append(out, SubjectInfo{strings.TrimPrefix(key, model.KeySubject), *v})
		}
	})
	slices.SortFunc(out, func(a, b SubjectInfo) int {
		return cmp.Or(cmp.Compare(a.Issuer, b.Issuer), cmp.Compare(a.Subject.Subject, b.Subject.Subject))
	})
	return out
}

func (s *Server) addSubject(r *http.Request) (any, error) {
	var in model.Subject
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	if in.Issuer == "" || in.Subject == "" {
		return nil, errors.New("issuer and subject are needed")
	}
	key := subjectKey(in.Issuer, in.Subject)
	rev, err := s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		user, err := userID(st, in.UserID)
		if err != nil {
			return nil, nil, err
		}
		in.UserID = user
		raw, err := json.Marshal(&in)
		return []store.Compare{{Key: key, Modified: st.Modified[key]}}, []store.Op{store.Put(key, raw)}, err
	})
	return Done{strings.TrimPrefix(key, model.KeySubject), rev}, err
}

func (s *Server) removeSubject(r *http.Request) (any, error) {
	key := r.PathValue("key")
	rev, err := s.remove(model.KeySubject+key, notFoundError("no such subject (yumen control subject list shows them)"), nil)
	return Done{key, rev}, err
}
