package control

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// keyType of Tables 6 and 19 (Q14): the body is sealed by SM2 and SM4.
const keyType = "SM2-SM4"

const (
	pageBytes     = 600 << 10 // JSON of rows and facts in one page; base64 and envelope stay below 1 MiB
	pageRows      = 512       // in a page, about
	maxCacheBytes = 256 << 20 // of ready lists, all gateways together
)

// listCache holds the newest list of each kind for each gateway, as it goes
// over the wire: hundreds of gateways may pull at once after an outage.
type listCache struct {
	mu    sync.Mutex
	lists map[listKey]*builtList // guarded by mu
	bytes int                    // guarded by mu

	building chan struct{} // bounds the lists that are being made: reports must not wait for them
}

type listKey struct {
	gateway string
	list    wire.ListName
}

type builtList struct {
	version uint64
	enc     string // the certificate that it is sealed to
	made    time.Time
	key     listKey
	size    int // of lines, once they count; guarded by listCache.mu

	once   sync.Once
	build  func(before []builtPage) ([]byte, []builtPage, error)
	before *builtList // the version before; nil once it was looked at
	lines  []byte
	pages  []builtPage // of grants; parts of lines
	err    error
}

// builtPage is a page of the grants, which serves for the next version, too,
// when nothing in it has changed. Its lines are part of the list's.
type builtPage struct {
	rows   []*model.Row // immutable; the same pointer is the same row
	signer string       // keyId of the list signer
	made   time.Time
	line   []byte
}

// maxPageAge is how long a page serves.
const maxPageAge = time.Hour

func newListCache() *listCache {
	return &listCache{lists: map[listKey]*builtList{}, building: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// get returns the list, building it once however many ask for it. build gets
// the pages of the version before.
func (c *listCache) get(k listKey, version uint64, p *model.Party, now time.Time, build func(before []builtPage) ([]byte, []builtPage, error)) ([]byte, error) {
	c.mu.Lock()
	b := c.lists[k]
	var before *builtList
	if b == nil || b.version != version || b.enc != string(p.Enc) {
		if b != nil {
			c.bytes -= b.size
			if b.enc == string(p.Enc) {
				before = b
			}
		}
		b = &builtList{key: k, version: version, enc: string(p.Enc), made: now, before: before, build: build}
		c.lists[k] = b
	}
	c.mu.Unlock()
	c.run(b)
	return b.lines, b.err
}

// run makes b, once.
func (c *listCache) run(b *builtList) {
	b.once.Do(func() {
		var before []builtPage
		if b.before != nil { // the newest pages there will be
			c.run(b.before)
			before, b.before = b.before.pages, nil
		}
		c.make(b, before)
		k := b.key
		b.build = nil
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.lists[k] != b {
			return // a newer one took its place
		}
		if b.err != nil {
			delete(c.lists, k)
			return
		}
		b.size = len(b.lines)
		c.bytes += b.size
		for c.bytes > maxCacheBytes && len(c.lists) > 1 {
			oldest := slices.MinFunc(slices.Collect(maps.Keys(c.lists)), func(x, y listKey) int { return c.lists[x].made.Compare(c.lists[y].made) })
			if oldest == k {
				break
			}
			c.bytes -= c.lists[oldest].size
			delete(c.lists, oldest)
		}
	})
}

// make has a place among the lists that are being made, also when build panics.
func (c *listCache) make(b *builtList, before []builtPage) {
	c.building <- struct{}{}
	defer func() { <-c.building }()
	b.err = errors.New("make list: it was given up") // unless build returns
	b.lines, b.pages, b.err = b.build(before)
}

func (c *listCache) drop(gateway string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, list := range []wire.ListName{wire.GrantsList, wire.PoliciesList} {
		if b := c.lists[listKey{gateway, list}]; b != nil {
			c.bytes -= b.size
			delete(c.lists, listKey{gateway, list})
		}
	}
}

// list serves T6 or T8 as NDJSON: the manifest, then one page a line (§7.3.2,
// §7.3.3).
func (s *Server) list(name wire.ListName) http.HandlerFunc {
	object := "T6"
	if name == wire.PoliciesList {
		object = "T8"
	}
	return func(w http.ResponseWriter, r *http.Request) {
		p, why := s.peerOf(r, model.Gateway)
		if why != reason.OK {
			s.refuseUnknown(w, r, object, why)
			return
		}
		if !s.identified(p.Party) {
			s.refuseGet(w, p, object, reason.NotAuthenticated)
			return
		}
		// 1 What stands in the list, at one revision.
		var l listContent
		s.view(func(st *model.State) { l = contentOf(st, name) })
		etag := fmt.Sprintf(`"%s-%d"`, name, l.version)
		w.Header().Set("ETag", etag)
		w.Header().Set("Cache-Control", "private, no-cache")
		if matches(r.Header.Get("If-None-Match"), etag) {
			s.stats.notModified.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		// 2 Its lines, from the cache or made now.
		lines, err := s.lists.get(listKey{p.ID, name}, l.version, p.Party, s.cfg.Now(), func(before []builtPage) ([]byte, []builtPage, error) {
			return s.buildList(p.Party, name, &l, before)
		})
		if err != nil {
			s.log.Error("list not made", zap.String("gateway_id", p.ID), zap.Error(err))
			w.Header().Del("ETag")
			s.refuseGet(w, p, object, reason.InternalError)
			return
		}
		// 3 The answer.
		s.stats.lists.Add(1)
		s.audit.Write(s.record(p, object, answer{detail: "version " + etag}))
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute))
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Write(lines)
	}
}

func matches(header, etag string) bool {
	for tag := range strings.SplitSeq(header, ",") {
		if tag = strings.TrimSpace(tag); tag == etag || tag == "W/"+etag {
			return true
		}
	}
	return false
}

// listContent is one list at one revision.
type listContent struct {
	version  uint64
	rows     []*model.Row // unsorted
	policies []*wire.Policy
	locks    []wire.LockRow
}

// contentOf gathers under the state's lock, and leaves the sorting for later.
func contentOf(st *model.State, name wire.ListName) (l listContent) {
	if name == wire.GrantsList {
		l.version, l.rows = st.GrantsVersion, slices.Collect(maps.Values(st.Rows))
		return l
	}
	l.version, l.policies = st.PoliciesVersion, slices.Collect(maps.Values(st.Policies))
	for _, lock := range st.SortedLocks() {
		l.locks = append(l.locks, lock.Wire())
	}
	return l
}

// buildList makes the lines of a list for one gateway. The pages of grants that
// stand in before as they are serve again.
func (s *Server) buildList(p *model.Party, name wire.ListName, l *listContent, before []builtPage) ([]byte, []builtPage, error) {
	to, err := encOf(p)
	if err != nil {
		return nil, nil, err
	}
	now := s.cfg.Now()
	m := wire.Manifest{List: name, Version: l.version, Receiver: p.ID, NotAfter: wire.FormatTime(now.Add(s.cfg.ListLife)),
		Rows: len(l.rows) + len(l.policies), Pages: []wire.ManifestPage{}, Locks: l.locks}
	var pages [][]byte
	add := func(line []byte) {
		m.Pages = append(m.Pages, wire.ManifestPage{SM3: wire.PageHash(line), Bytes: len(line)})
		pages = append(pages, line)
	}
	own := s.own.Load() // one signer for all
	var built []builtPage
	if name == wire.GrantsList {
		if built, err = s.grantPages(own, p, l.rows, now, to, before); err == nil {
			for _, b := range built {
				add(b.line)
			}
		}
	} else {
		err = policyPages(p, l.policies, now, func(body []byte) error {
			line, err := own.signList("T8", p.ID, body, nil, to)
			if err == nil {
				add(line)
			}
			return err
		})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make list of %s: %w", name, err)
	}
	body, err := wire.EncodeExtension(&m)
	if err != nil {
		return nil, nil, err
	}
	head, err := own.signList(wire.TypeManifest, p.ID, body, nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("make list of %s: %w", name, err)
	}
	lines := append(bytes.Join(append([][]byte{head}, pages...), []byte("\n")), '\n')
	at := len(head) + 1
	for i := range built {
		end := at + len(built[i].line)
		built[i].line = lines[at:end:end] // not the line of the version before, which may go
		at = end + 1
	}
	return lines, built, nil
}

// signList returns an envelope of the list signer, in one line.
func (s *Server) signList(msgType, receiver string, body []byte, ext headerExt, to *smx509.Certificate) ([]byte, error) {
	return s.own.Load().signList(msgType, receiver, body, ext, to)
}

func (own *renewable) signList(msgType, receiver string, body []byte, ext headerExt, to *smx509.Certificate) ([]byte, error) {
	if ext == nil {
		ext = headerExt{}
	}
	ext[wire.ExtSigner] = own.signerExt
	return own.list.Seal(envelope.Header{MsgType: msgType, Receiver: receiver, Ext: ext}, body, to)
}

// grantPages makes the pages of the grants, each of those that are not in
// before. It lets others run between them: a list of 100,000 rows takes a second.
func (s *Server) grantPages(own *renewable, p *model.Party, rows []*model.Row, now time.Time, to *smx509.Certificate, before []builtPage) ([]builtPage, error) {
	slices.SortFunc(rows, func(a, b *model.Row) int { return a.Pair.Compare(b.Pair) })
	signer := envelope.KeyID(own.list.Cert)
	former := make(map[*model.Row]*builtPage, len(before))
	for i := range before {
		if b := &before[i]; b.signer == signer && now.Sub(b.made).Abs() < maxPageAge {
			former[b.rows[0]] = b
		}
	}
	var pages []builtPage
	for part := range pagesOf(rows) {
		if b := former[part[0]]; b != nil && slices.Equal(b.rows, part) {
			pages = append(pages, *b)
			continue
		}
		list := wire.GrantList{GatewayID: p.ID, DeviceID: p.DeviceID, KeyType: keyType, Timestamp: wire.FormatTime(now)}
		facts := make([]wire.RowFacts, len(part))
		for i, r := range part {
			list.Data, facts[i] = append(list.Data, r.Grant()), r.Facts(i)
		}
		body, err := wire.Encode(&list)
		if err != nil {
			return nil, err
		}
		line, err := own.signList("T6", p.ID, body, headerExt{}.with(wire.ExtRows, facts), to)
		if err != nil {
			return nil, err
		}
		pages = append(pages, builtPage{part, signer, now, line})
		runtime.Gosched()
	}
	return pages, nil
}

// pagesOf cuts sorted rows into pages: behind a row that its own name chooses,
// one in pageRows, so that a change moves no other page's bounds; at the latest
// when a page is full.
func pagesOf(rows []*model.Row) iter.Seq[[]*model.Row] {
	return func(yield func([]*model.Row) bool) {
		from, size := 0, 0
		for i, r := range rows {
			size += 320 + 18*len(r.Apps)
			if size >= pageBytes || chooses(r.Pair) || i == len(rows)-1 {
				if !yield(rows[from : i+1 : i+1]) {
					return
				}
				from, size = i+1, 0
			}
		}
	}
}

// chooses reports whether a page ends behind the row of p.
func chooses(p model.Pair) bool {
	h := fnv.New32a()
	io.WriteString(h, p.User)
	io.WriteString(h, p.Device)
	return h.Sum32()%pageRows == 0
}

func policyPages(p *model.Party, policies []*wire.Policy, now time.Time, page func(body []byte) error) error {
	slices.SortFunc(policies, func(a, b *wire.Policy) int { return cmp.Compare(a.PolicyID, b.PolicyID) })
	for chunk := range slices.Chunk(policies, 2000) {
		list := wire.PolicyList{GatewayID: p.ID, DeviceID: p.DeviceID, Timestamp: wire.FormatTime(now)}
		for _, row := range chunk {
			list.PolicyList = append(list.PolicyList, *row)
		}
		body, err := wire.Encode(&list)
		if err == nil {
			err = page(body)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
