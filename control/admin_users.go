package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/wire"
)

// UserInfo is a user without secrets.
type UserInfo struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Display     string    `json:"display,omitempty"`
	Locked      bool      `json:"locked"`
	LockedOut   time.Time `json:"locked_out_until,omitzero"` // too many wrong passwords
	Devices     []string  `json:"devices,omitempty"`         // on which the user is signed in
	PasswordSet time.Time `json:"password_set,omitzero"`
}

func (s *Server) listUsers() []UserInfo {
	out := []UserInfo{}
	s.view(func(st *model.State) {
		for _, u := range st.Users {
			i := UserInfo{ID: u.ID, Name: u.Name, Display: u.Display, PasswordSet: u.Changed,
				Locked: st.Locks[model.LockRef{Kind: "user", ID: u.ID}] != nil}
			for _, p := range st.SessionsOf(u.ID) {
				i.Devices = append(i.Devices, p.Device)
			}
			out = append(out, i)
		}
	})
	for i := range out {
		out[i].LockedOut, _ = s.users.Locked(out[i].ID)
	}
	slices.SortFunc(out, func(a, b UserInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// NewUser is the request to add a user.
type NewUser struct {
	ID       string `json:"id,omitempty"` // default: the next one
	Name     string `json:"name"`
	Display  string `json:"display,omitempty"`
	Password string `json:"password"`
}

func (s *Server) addUser(r *http.Request) (any, error) {
	var in NewUser
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	in.Name = strings.TrimSpace(in.Name)
	if in.Name == "" || len(in.Name) > 200 || strings.ContainsAny(in.Name, "\n\t/") {
		return nil, fmt.Errorf("name %q: 1 to 200 bytes without slashes or line breaks are needed", in.Name)
	}
	hash, err := s.hasher.Hash(r.Context(), in.Password)
	if err != nil {
		return nil, err
	}
	id, rev, err := s.create("USR", in.ID, func(st *model.State, id string) (string, any, error) {
		if u := st.UserByName(in.Name); u != nil {
			return "", nil, fmt.Errorf("the name %q belongs to %s (take another name)", in.Name, u.ID)
		}
		return model.KeyUser + id, &model.User{ID: id, Name: in.Name, Display: in.Display, Password: hash, Changed: s.cfg.Now()}, nil
	})
	return Done{id, rev}, err
}

// userID resolves an identifier or a name.
func userID(st *model.State, name string) (string, error) {
	if u := st.UserByName(name); u != nil {
		return u.ID, nil
	}
	return "", notFoundError(fmt.Sprintf("no user %q (yumen control user list shows them)", name))
}

func (s *Server) setPassword(r *http.Request) (any, error) {
	var in struct {
		Password string `json:"password"`
	}
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	hash, err := s.hasher.Hash(r.Context(), in.Password)
	if err != nil {
		return nil, err
	}
	var id string
	rev, err := s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		if id, err = userID(st, r.PathValue("id")); err != nil {
			return nil, nil, err
		}
		next := *st.Users[id]
		next.Password, next.Changed = hash, s.cfg.Now()
		raw, err := json.Marshal(&next)
		if err != nil {
			return nil, nil, err
		}
		key := model.KeyUser + id
		ops := append([]store.Op{store.Put(key, raw)}, endOps(st.SessionsOf(id))...)
		return []store.Compare{{Key: key, Modified: st.Modified[key]}}, append(ops, s.revocation(id)), nil
	})
	if err == nil {
		s.users.Forget(id)
		s.endLogins(id)
	}
	return Done{id, rev}, err
}

func (s *Server) removeUser(r *http.Request) (any, error) {
	var id string
	var err error
	s.view(func(st *model.State) { id, err = userID(st, r.PathValue("id")) })
	if err != nil {
		return nil, err
	}
	rev, err := s.remove(model.KeyUser+id, notFoundError("the user is gone already"), func(st *model.State) []store.Op {
		ops := append(endOps(st.SessionsOf(id)), s.revocation(id))
		for _, g := range st.Grants {
			if g.UserID == id {
				ops = append(ops, store.Delete(model.KeyGrant+g.ID))
			}
		}
		for key, m := range st.Subjects {
			if m.UserID == id {
				ops = append(ops, store.Delete(key))
			}
		}
		return ops
	})
	if err == nil {
		s.endLogins(id)
	}
	return Done{id, rev}, err
}

func (s *Server) endLogins(user string) {
	if s.idp != nil {
		s.idp.End(user)
	}
}

// endOps ends authentications.
func endOps(pairs []model.Pair) (ops []store.Op) {
	for _, p := range pairs {
		ops = append(ops, store.Delete(model.SessionKey(p)))
	}
	return ops
}

// revocationLife is longer than any session of a gateway may last.
const revocationLife = 7 * 24 * time.Hour

// revocation ends the browser sessions of a user that began before now. The
// second that has begun is within it: times on the wire have no fractions.
func (s *Server) revocation(user string) store.Op {
	now := s.cfg.Now()
	raw, err := json.Marshal(&model.Revocation{UserID: user, IssuedBefore: now.Truncate(time.Second).Add(time.Second), Until: now.Add(revocationLife)})
	if err != nil {
		panic(err) // a plain struct
	}
	return store.Put(model.KeyRevocation+user, raw)
}

// DeviceInfo is a party without secrets.
type DeviceInfo struct {
	Kind      string    `json:"kind"`
	ID        string    `json:"id"`
	DeviceID  string    `json:"device_id,omitempty"`
	Name      string    `json:"name,omitempty"`
	Type      string    `json:"type,omitempty"`
	System    string    `json:"system,omitempty"`
	UserID    string    `json:"user_id,omitempty"`
	Addresses []string  `json:"addresses,omitempty"`
	Enrolled  time.Time `json:"enrolled,omitzero"`
	CodeUntil time.Time `json:"code_until,omitzero"` // a code is waiting
	Locked    bool      `json:"locked"`
	Posture   *int      `json:"posture,omitempty"`
	Risk      *int      `json:"risk,omitempty"`

	Device *wire.Posture `json:"device,omitempty"` // as its agent reports it
}

func (s *Server) listDevices() []DeviceInfo {
	out := []DeviceInfo{}
	for _, p := range s.sortedParties() {
		i := DeviceInfo{Kind: p.Kind, ID: p.ID, DeviceID: p.DeviceID, Name: p.Name, Type: p.Type, System: p.System, UserID: p.UserID,
			Addresses: p.Addresses, Enrolled: p.Enrolled, Locked: s.locked(p) != nil, Posture: cmp.Or(p.Posture, p.Seen), Risk: p.Risk, Device: p.Device}
		if p.Code != nil {
			i.CodeUntil = p.Code.Until
		}
		out = append(out, i)
	}
	return out
}

// NewDevice is the request to add a gateway, an agent or an application's
// connector.
type NewDevice struct {
	Kind      string   `json:"kind"` // gateway, agent or app
	ID        string   `json:"id,omitempty"`
	Name      string   `json:"name,omitempty"`
	User      string   `json:"user,omitempty"`      // agent: only this user may use it
	Addresses []string `json:"addresses,omitempty"` // gateway: host:port that agents dial
}

// NewCode is the answer: the code is shown this once.
type NewCode struct {
	Done
	DeviceID string    `json:"device_id,omitempty"`
	Code     string    `json:"code"`
	Until    time.Time `json:"until"`
}

func (s *Server) addDevice(r *http.Request) (any, error) {
	var in NewDevice
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	prefix, ok := map[string]string{model.Gateway: "GW", model.Agent: "AGT", model.Application: "APP"}[in.Kind]
	if !ok {
		return nil, fmt.Errorf("kind %q: gateway, agent or app is needed", in.Kind)
	}
	if in.Kind == model.Application && in.ID == "" {
		return nil, errors.New("id: the application's identifier is needed (yumen control app list shows them)")
	}
	if err := checkAddresses(in.Kind, in.Addresses); err != nil {
		return nil, err
	}
	second := "DEV"
	if in.Kind == model.Application {
		second = ""
	}
	var out NewCode
	id, rev, err := s.createWith(prefix, in.ID, second, func(st *model.State, id, device string) ([]entry, error) {
		p := &model.Party{Kind: in.Kind, ID: id, DeviceID: device, Name: in.Name, Addresses: in.Addresses}
		if in.Kind == model.Application && st.Apps[id] == nil {
			return nil, notFoundError(fmt.Sprintf("no application %s (yumen control app add makes one)", id))
		}
		if in.User != "" {
			if in.Kind != model.Agent {
				return nil, errors.New("user: only an agent belongs to a user")
			}
			var err error
			if p.UserID, err = userID(st, in.User); err != nil {
				return nil, err
			}
		}
		secret, code := s.newSecret(id)
		p.Code = code
		text, err := s.codeText(in.Kind, secret)
		out.Code, out.Until, out.DeviceID = text, code.Until, device
		return []entry{{model.KeyParty + id, p}}, err
	})
	out.Done = Done{id, rev}
	return out, err
}

// checkAddresses checks where a party is dialed, which gives its certificate
// its names, too.
func checkAddresses(kind string, addresses []string) error {
	if kind == model.Agent && len(addresses) > 0 {
		return errors.New("address: an agent has none, nobody dials it")
	}
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		n, err2 := strconv.ParseUint(port, 10, 16)
		if err != nil || err2 != nil || host == "" || n == 0 {
			return fmt.Errorf("address %q: host:port is needed", a)
		}
	}
	return nil
}

// Addresses are where agents dial a gateway: host:port.
type Addresses struct {
	Addresses []string `json:"addresses"`
}

// setAddresses changes where agents dial a gateway. They learn it by their next
// Table 19; the names in the gateway's certificate follow when it enrols again.
func (s *Server) setAddresses(r *http.Request) (any, error) {
	var in Addresses
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	if len(in.Addresses) == 0 {
		return nil, errors.New("address: at least one is needed")
	}
	return s.editParty(r.PathValue("id"), func(p *model.Party) error {
		p.Addresses = in.Addresses
		return checkAddresses(p.Kind, in.Addresses)
	})
}

// partyOf resolves a party's identifier, its deviceId, or its name when no
// other has the same.
func partyOf(st *model.State, id string) (*model.Party, error) {
	if p := st.Parties[id]; p != nil {
		return p, nil
	}
	if p := st.PartyOfDevice(id); p != nil {
		return p, nil
	}
	var named []*model.Party
	var ids []string
	for _, p := range st.Parties {
		if id != "" && strings.EqualFold(p.Name, id) {
			named, ids = append(named, p), append(ids, p.ID)
		}
	}
	switch len(named) {
	case 0:
	case 1:
		return named[0], nil
	default:
		slices.Sort(ids)
		return nil, fmt.Errorf("%d devices have the name %q: %s (give the identifier)", len(named), id, strings.Join(ids, ", "))
	}
	return nil, notFoundError(fmt.Sprintf("no device %q (yumen control device list shows them)", id))
}

// editParty commits what edit makes of a party.
func (s *Server) editParty(id string, edit func(*model.Party) error) (Done, error) {
	var d Done
	var err error
	d.Version, err = s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		p, err := partyOf(st, id)
		if err != nil {
			return nil, nil, err
		}
		next := *p
		if err := edit(&next); err != nil {
			return nil, nil, err
		}
		raw, err := json.Marshal(&next)
		d.ID = p.ID
		key := model.KeyParty + p.ID
		return []store.Compare{{Key: key, Modified: st.Modified[key]}}, []store.Op{store.Put(key, raw)}, err
	})
	return d, err
}

// renewCode gives a new code; the certificates of an enrolled party count
// until it is used.
func (s *Server) renewCode(r *http.Request) (any, error) {
	var out NewCode
	d, err := s.editParty(r.PathValue("id"), func(p *model.Party) (err error) {
		secret, code := s.newSecret(p.ID)
		p.Code, out.Until, out.DeviceID = code, code.Until, p.DeviceID
		out.Code, err = s.codeText(p.Kind, secret)
		return err
	})
	out.Done = d
	return out, err
}

// Facts are what an operator or another system says of a device.
type Facts struct {
	Posture *int `json:"posture,omitempty"` // 0 to 100, high is good; absent: unknown
	Risk    *int `json:"risk,omitempty"`    // 0 to 100, high is bad; absent: unknown
}

func (s *Server) setFacts(r *http.Request) (any, error) {
	var in Facts
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	for name, v := range map[string]*int{"posture": in.Posture, "risk": in.Risk} {
		if v != nil && (*v < 0 || *v > 100) {
			return nil, fmt.Errorf("%s %d: 0 to 100 is needed", name, *v)
		}
	}
	return s.editParty(r.PathValue("id"), func(p *model.Party) error {
		p.Posture, p.Risk = in.Posture, in.Risk
		return nil
	})
}

func (s *Server) removeDevice(r *http.Request) (any, error) {
	var p *model.Party
	var err error
	s.view(func(st *model.State) { p, err = partyOf(st, r.PathValue("id")) })
	if err != nil {
		return nil, err
	}
	rev, err := s.remove(model.KeyParty+p.ID, notFoundError("the device is gone already"), func(st *model.State) []store.Op {
		ops := endOps(st.SessionsOn(p.DeviceID))
		for _, g := range st.Grants {
			if p.DeviceID != "" && g.Device == p.DeviceID {
				ops = append(ops, store.Delete(model.KeyGrant+g.ID))
			}
		}
		return ops
	})
	s.hub.forget(p.ID)
	s.lists.drop(p.ID)
	return Done{p.ID, rev}, err
}

func (s *Server) listApps() []*model.App {
	var out []*model.App
	s.view(func(st *model.State) { out = slices.Collect(maps.Values(st.Apps)) })
	slices.SortFunc(out, func(a, b *model.App) int { return cmp.Compare(a.ID, b.ID) })
	return append([]*model.App{}, out...)
}

func (s *Server) addApp(r *http.Request) (any, error) {
	var in model.App
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	if in.Protocol == "" {
		in.Protocol = "tcp"
	}
	if in.Protocol != "tcp" && in.Protocol != "udp" {
		return nil, fmt.Errorf("protocol %q: tcp or udp is needed", in.Protocol)
	}
	for _, a := range in.Addresses {
		if _, err := netip.ParseAddrPort(a); err != nil {
			return nil, fmt.Errorf("address %q: IP:port is needed, for example 10.0.0.5:443 or [fd00::5]:443", a)
		}
	}
	probe := wire.Resource{AppID: "APP00000000", AppName: in.Name, IP: "0.0.0.0"}
	if err := probe.Validate(wire.Lax); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	id, rev, err := s.create("APP", in.ID, func(_ *model.State, id string) (string, any, error) {
		next := in
		next.ID = id
		return model.KeyApp + id, &next, nil
	})
	return Done{id, rev}, err
}

func (s *Server) removeApp(r *http.Request) (any, error) {
	id := r.PathValue("id")
	rev, err := s.remove(model.KeyApp+id, notFoundError(fmt.Sprintf("no application %q (yumen control app list shows them)", id)), nil)
	return Done{id, rev}, err
}
