package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// notFoundError says that what a verb names does not exist; its text says how
// to find what does.
type notFoundError string

func (e notFoundError) Error() string { return string(e) }

// adminHandler returns the verbs of the admin socket: JSON in, JSON out.
func (s *Server) adminHandler() http.Handler {
	m := http.NewServeMux()
	read := func(pattern string, f func(r *http.Request) (any, error)) {
		m.HandleFunc(pattern, s.verb(pattern, false, f))
	}
	write := func(pattern string, f func(r *http.Request) (any, error)) {
		m.HandleFunc(pattern, s.verb(pattern, true, f))
	}

	read("GET /v1/status", func(*http.Request) (any, error) { return s.Status(), nil })
	read("GET /v1/outbox", func(*http.Request) (any, error) { return s.book.positions(), nil })
	read("GET /v1/users", func(*http.Request) (any, error) { return s.listUsers(), nil })
	write("POST /v1/users", s.addUser)
	write("PUT /v1/users/{id}/password", s.setPassword)
	write("DELETE /v1/users/{id}", s.removeUser)
	read("GET /v1/devices", func(*http.Request) (any, error) { return s.listDevices(), nil })
	write("POST /v1/devices", s.addDevice)
	write("POST /v1/devices/{id}/code", s.renewCode)
	write("PUT /v1/devices/{id}/facts", s.setFacts)
	write("PUT /v1/devices/{id}/addresses", s.setAddresses)
	write("DELETE /v1/devices/{id}", s.removeDevice)
	read("GET /v1/apps", func(*http.Request) (any, error) { return s.listApps(), nil })
	write("POST /v1/apps", s.addApp)
	write("DELETE /v1/apps/{id}", s.removeApp)
	read("GET /v1/grants", func(*http.Request) (any, error) { return s.listGrants(), nil })
	write("POST /v1/grants", s.addGrant)
	write("DELETE /v1/grants/{id}", s.removeGrant)
	read("GET /v1/policies", func(*http.Request) (any, error) { return s.listPolicies(), nil })
	write("POST /v1/policies", s.addPolicy)
	write("DELETE /v1/policies/{id}", s.removePolicy)
	read("GET /v1/locks", func(*http.Request) (any, error) { return s.listLocks(), nil })
	write("POST /v1/locks", s.lock)
	write("DELETE /v1/locks/{kind}/{id}", s.unlock)
	read("GET /v1/sessions", func(*http.Request) (any, error) { return s.listSessions(), nil })
	write("DELETE /v1/sessions/{user}/{device}", s.endSession)
	read("GET /v1/subjects", func(*http.Request) (any, error) { return s.listSubjects(), nil })
	write("POST /v1/subjects", s.addSubject)
	write("DELETE /v1/subjects/{key}", s.removeSubject)
	s.chaosVerbs(read, write)
	m.HandleFunc("GET /v1/events", s.watchEvents)
	return m
}

// verb wraps a verb with its audit record and its answer.
func (s *Server) verb(pattern string, writes bool, f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		if writes || err != nil {
			rec := &audit.Record{Time: s.cfg.Now(), Kind: audit.Admin, UID: adminsock.UID(r), Object: r.Method + " " + r.URL.Path,
				Remote: "admin socket", Allowed: err == nil, Result: "ok"}
			if err != nil {
				rec.Result, rec.Code, rec.Detail = "refused", reason.MessageInvalid, err.Error()
			} else if n, ok := out.(interface{ object() string }); ok {
				rec.Detail = n.object()
			}
			s.audit.Write(rec)
		}
		var missing notFoundError
		var conflict *store.ConflictError
		switch {
		case err == nil:
			adminsock.Reply(w, out)
		case errors.As(err, &missing):
			adminsock.Refuse(w, http.StatusNotFound, err)
		case errors.As(err, &conflict):
			adminsock.Refuse(w, http.StatusConflict, err)
		default:
			adminsock.Refuse(w, http.StatusBadRequest, err)
		}
	}
}

// newID returns the next identifier with this prefix, and what must be part of
// the transaction that uses it.
func (s *Server) newID(prefix string) (id string, compare store.Compare, op store.Op, err error) {
	key := model.KeySequence + prefix
	e, ok, err := s.st.Get(key)
	if err != nil {
		return "", compare, op, err
	}
	n := uint64(1)
	if ok && len(e.Value) == 8 {
		n = binary.BigEndian.Uint64(e.Value) + 1
	}
	return wire.NewID(prefix, int(n)), store.Compare{Key: key, Modified: e.Modified}, store.Put(key, binary.BigEndian.AppendUint64(nil, n)), nil
}

// create commits a new entry under an identifier that it makes (given is
// empty) or takes as given, which must be free.
func (s *Server) create(prefix, given string, plan func(st *model.State, id string) (key string, value any, err error)) (id string, rev uint64, err error) {
	return s.createWith(prefix, given, "", func(st *model.State, id, _ string) ([]entry, error) {
		key, value, err := plan(st, id)
		return []entry{{key, value}}, err
	})
}

// entry is one new entry of the store.
type entry struct {
	key   string
	value any
}

// createWith is create with a second identifier, with the prefix more unless
// that is empty, that is given away in the same transaction; plan returns the
// entry of the identifier first, then others that come with it.
func (s *Server) createWith(prefix, given, more string, plan func(st *model.State, id, second string) ([]entry, error)) (id string, rev uint64, err error) {
	if given != "" && (len(given) != wire.IDLength || strings.ContainsAny(given, "/ ")) {
		return "", 0, fmt.Errorf("identifier %q: %d characters without blanks or slashes are needed (or none: one is made)", given, wire.IDLength)
	}
	s.creating.Lock() // in this process nobody has to try twice
	defer s.creating.Unlock()
	for range 8 {
		var compares []store.Compare
		var ops []store.Op
		next := func(prefix string) (string, error) {
			id, c, op, err := s.newID(prefix)
			compares, ops = append(compares, c), append(ops, op)
			return id, err
		}
		id = given
		if id == "" {
			if id, err = next(prefix); err != nil {
				return "", 0, err
			}
		}
		second := ""
		if more != "" {
			if second, err = next(more); err != nil {
				return "", 0, err
			}
		}
		var entries []entry
		s.view(func(st *model.State) { entries, err = plan(st, id, second) })
		if err != nil {
			return "", 0, err
		}
		for _, e := range entries {
			raw, err := json.Marshal(e.value)
			if err != nil {
				return "", 0, err
			}
			compares, ops = append(compares, store.Compare{Key: e.key}), append(ops, store.Put(e.key, raw))
		}
		key := entries[0].key
		rev, err = s.commit(compares, ops...)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			return id, rev, err
		}
		if given != "" && conflict.Key == key {
			return "", 0, fmt.Errorf("%s exists already (remove it first, or take another identifier)", given)
		}
	}
	return "", 0, errors.New("too many writers at once (try again)")
}

// remove deletes the entry of key and what more returns with it.
func (s *Server) remove(key string, missing error, more func(*model.State) []store.Op) (uint64, error) {
	return s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		at := st.Modified[key]
		if at == 0 {
			return nil, nil, missing
		}
		ops := []store.Op{store.Delete(key)}
		if more != nil {
			ops = append(ops, more(st)...)
		}
		return []store.Compare{{Key: key, Modified: at}}, ops, nil
	})
}

// Done is the answer to a verb that changed something.
type Done struct {
	ID      string `json:"id"`
	Version uint64 `json:"version"` // revision of the change
}

func (d Done) object() string { return d.ID }

// watchEvents streams audit records and alerts as JSON lines until the operator
// goes away.
func (s *Server) watchEvents(w http.ResponseWriter, r *http.Request) {
	sub, cancel := s.feed.subscribe()
	defer cancel()
	s.audit.Write(&audit.Record{Time: s.cfg.Now(), Kind: audit.Admin, UID: adminsock.UID(r), Object: "GET /v1/events", Remote: "admin socket", Allowed: true, Result: "ok"})
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	rc.Flush()
	for {
		select {
		case line := <-sub.lines:
			if n := sub.dropped.Swap(0); n > 0 {
				fmt.Fprintf(w, "{\"event\":\"gap\",\"data\":{\"dropped\":%d}}\n", n)
			}
			if _, err := w.Write(line); err != nil || rc.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// AdminClient speaks to the admin socket of a running control center. It is
// safe for concurrent use.
type AdminClient struct{ c *adminsock.Client }

// NewAdminClient returns a client of the unix socket at path.
func NewAdminClient(path string) *AdminClient { return &AdminClient{adminsock.NewClient(path)} }

// Do sends one verb, for example "POST", "/v1/users", with in as JSON, and
// decodes the answer into out. Either may be nil. An error has the control
// center's own words.
func (c *AdminClient) Do(ctx context.Context, method, path string, in, out any) error {
	return c.c.Do(ctx, method, path, in, out)
}
