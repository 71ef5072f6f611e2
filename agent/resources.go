package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Target is where a local program wants to go.
type Target struct {
	Network string     // "tcp" or "udp"
	Name    string     // a host name, or
	Addr    netip.Addr // an address
	Port    uint16
}

// String returns network://host:port.
func (t Target) String() string {
	host := t.Name
	if host == "" {
		host = t.Addr.String()
		if t.Addr.Is6() {
			host = "[" + host + "]"
		}
	}
	return fmt.Sprintf("%s://%s:%d", t.Network, host, t.Port)
}

// Resource is one row of Table 20 with its extension (Q32), checked.
type Resource struct {
	AppID    string         `json:"appId"`
	AppName  string         `json:"appName"`
	Addr     netip.AddrPort `json:"address"`
	Hosts    []string       `json:"hosts,omitempty"` // lower case, no final dot
	Protocol string         `json:"protocol"`        // "tcp" or "udp"
}

// same reports whether r and o lead to the same place.
func (r *Resource) same(o *Resource) bool {
	return r.AppID == o.AppID && r.Addr == o.Addr && r.Protocol == o.Protocol
}

type place struct {
	network string
	addr    netip.AddrPort // of an address, or
	name    string         // of a name: "name:port"
}

// routes is one resource list as a table of ways. It is immutable; the zero
// value leads nowhere.
type routes struct {
	list    []*Resource // by application, then address
	byPlace map[place][]*Resource
}

// newRoutes reads the rows of a list. A bad row gives no way and is named in
// the error; the others count.
func newRoutes(rs *ctlclient.Resources) (*routes, error) {
	t := &routes{byPlace: map[place][]*Resource{}}
	facts := map[int]*wire.ResourceFacts{}
	var faults []error
	for i := range rs.Facts {
		f := &rs.Facts[i]
		if f.I < 0 || f.I >= len(rs.List.ResourceList) || facts[f.I] != nil {
			faults = append(faults, fmt.Errorf("resource facts %d: row %d does not exist or stands twice", i, f.I))
			continue
		}
		facts[f.I] = f
	}
	for i := range rs.List.ResourceList {
		r, err := newResource(&rs.List.ResourceList[i], facts[i])
		if err != nil {
			faults = append(faults, fmt.Errorf("resource %d: %w", i, err))
			continue
		}
		if slices.ContainsFunc(t.list, r.same) {
			continue
		}
		t.list = append(t.list, r)
		t.add(place{network: r.Protocol, addr: r.Addr}, r)
		for _, h := range r.Hosts {
			t.add(place{network: r.Protocol, name: fmt.Sprintf("%s:%d", h, r.Addr.Port())}, r)
		}
	}
	slices.SortFunc(t.list, func(a, b *Resource) int {
		return cmp.Or(strings.Compare(a.AppID, b.AppID), a.Addr.Compare(b.Addr), strings.Compare(a.Protocol, b.Protocol))
	})
	return t, errors.Join(faults...)
}

func newResource(row *wire.Resource, f *wire.ResourceFacts) (*Resource, error) {
	a, err := netip.ParseAddr(row.IP)
	switch {
	case err != nil || a.Zone() != "":
		return nil, fmt.Errorf("ip %q is no address", row.IP)
	case row.Port < 1 || row.Port > 65535:
		return nil, fmt.Errorf("port %d is not between 1 and 65535", row.Port)
	case row.AppID == "":
		return nil, errors.New("no appId")
	}
	r := &Resource{AppID: row.AppID, AppName: row.AppName, Addr: netip.AddrPortFrom(a.Unmap(), uint16(row.Port)), Protocol: "tcp"}
	if f == nil {
		return r, nil
	}
	switch f.Protocol {
	case "", "tcp":
	case "udp":
		r.Protocol = "udp"
	default:
		return nil, fmt.Errorf("protocol %q is neither tcp nor udp", f.Protocol)
	}
	for _, h := range f.Hosts {
		if h = foldHost(h); h != "" && !slices.Contains(r.Hosts, h) {
			r.Hosts = append(r.Hosts, h)
		}
	}
	return r, nil
}

func (t *routes) add(p place, r *Resource) { t.byPlace[p] = append(t.byPlace[p], r) }

func foldHost(h string) string { return strings.ToLower(strings.TrimSuffix(h, ".")) }

// lookup returns the one resource that to leads to. A place that no resource
// has is refused, and so is an address that several applications share: then
// only the name tells which is meant.
func (t *routes) lookup(to Target) (*Resource, reason.Reason) {
	if t == nil {
		return nil, reason.DestinationRule
	}
	p := place{network: to.Network}
	if to.Name != "" {
		p.name = fmt.Sprintf("%s:%d", foldHost(to.Name), to.Port)
	} else {
		p.addr = netip.AddrPortFrom(to.Addr.Unmap(), to.Port)
	}
	found := t.byPlace[p]
	if len(found) == 0 {
		return nil, reason.DestinationRule
	}
	for _, r := range found[1:] {
		if r.AppID != found[0].AppID {
			return nil, reason.DestinationRule
		}
	}
	return found[0], reason.OK
}

// app returns the resources of an application.
func (t *routes) app(id string) []*Resource {
	if t == nil {
		return nil
	}
	var out []*Resource
	for _, r := range t.list {
		if r.AppID == id {
			out = append(out, r)
		}
	}
	return out
}

// addresses returns the addresses of a name of the list, and whether the list
// has it at all.
func (t *routes) addresses(name string) (out []netip.Addr, known bool) {
	if t == nil {
		return nil, false
	}
	name = foldHost(name)
	for _, r := range t.list {
		if slices.Contains(r.Hosts, name) {
			known = true
			if !slices.Contains(out, r.Addr.Addr()) {
				out = append(out, r.Addr.Addr())
			}
		}
	}
	return out, known
}

// forward returns the resource of a port forward: the application's only one,
// or the one that target names.
func (t *routes) forward(f Forward) (*Resource, reason.Reason) {
	rs := t.app(f.App)
	if len(rs) == 0 {
		return nil, reason.AppNotGranted
	}
	if f.Target == "" {
		if len(rs) == 1 && rs[0].Protocol == f.network() {
			return rs[0], reason.OK
		}
		return nil, reason.DestinationRule
	}
	for _, r := range rs {
		if r.Protocol != f.network() {
			continue
		}
		if ap, err := netip.ParseAddrPort(f.Target); err == nil && r.Addr == ap {
			return r, reason.OK
		}
		for _, h := range r.Hosts {
			if fmt.Sprintf("%s:%d", h, r.Addr.Port()) == strings.ToLower(f.Target) {
				return r, reason.OK
			}
		}
	}
	return nil, reason.DestinationRule
}

// has reports whether r still stands in t.
func (t *routes) has(r *Resource) bool {
	return t != nil && slices.ContainsFunc(t.list, r.same)
}

// equal reports whether t and o have the same ways.
func (t *routes) equal(o *routes) bool {
	if t == nil || o == nil {
		return t == o
	}
	return slices.EqualFunc(t.list, o.list, func(a, b *Resource) bool { return a.same(b) && slices.Equal(a.Hosts, b.Hosts) })
}

// appAt returns the application that a notice about to concerns, or "".
func (t *routes) appAt(to string) string {
	for _, r := range t.list {
		if r.AppID == to || strings.HasSuffix(to, "/"+r.Addr.String()) {
			return r.AppID
		}
		for _, h := range r.Hosts {
			if strings.HasSuffix(strings.ToLower(to), fmt.Sprintf("/%s:%d", h, r.Addr.Port())) {
				return r.AppID
			}
		}
	}
	return ""
}
