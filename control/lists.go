package control

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
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
	maxCacheBytes = 256 << 20 // of ready lists, all gateways together
)

// listCache holds the newest list of each kind for each gateway, as it goes
// over the wire: hundreds of gateways may pull at once after an outage.
type listCache struct {
	mu    sync.Mutex
	lists map[listKey]*builtList // guarded by mu
	bytes int                    // guarded by mu
}

type listKey struct {
	gateway string
	list    wire.ListName
}

type builtList struct {
	version uint64
	enc     string // the certificate that it is sealed to
	made    time.Time
	once    sync.Once
	lines   []byte
	err     error
}

func newListCache() *listCache { return &listCache{lists: map[listKey]*builtList{}} }

// get returns the list, building it once however many ask for it.
func (c *listCache) get(k listKey, version uint64, p *model.Party, now time.Time, build func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	b := c.lists[k]
	if b == nil || b.version != version || b.enc != string(p.Enc) {
		if b != nil {
			c.bytes -= len(b.lines)
		}
		b = &builtList{version: version, enc: string(p.Enc), made: now}
		c.lists[k] = b
	}
	c.mu.Unlock()
	b.once.Do(func() {
		b.lines, b.err = build()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.lists[k] != b {
			return // a newer one took its place
		}
		if b.err != nil {
			delete(c.lists, k)
			return
		}
		c.bytes += len(b.lines)
		for c.bytes > maxCacheBytes && len(c.lists) > 1 {
			oldest := slices.MinFunc(slices.Collect(maps.Keys(c.lists)), func(x, y listKey) int { return c.lists[x].made.Compare(c.lists[y].made) })
			if oldest == k {
				break
			}
			c.bytes -= len(c.lists[oldest].lines)
			delete(c.lists, oldest)
		}
	})
	return b.lines, b.err
}

func (c *listCache) drop(gateway string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, list := range []wire.ListName{wire.GrantsList, wire.PoliciesList} {
		if b := c.lists[listKey{gateway, list}]; b != nil {
			c.bytes -= len(b.lines)
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
		lines, err := s.lists.get(listKey{p.ID, name}, l.version, p.Party, s.cfg.Now(), func() ([]byte, error) { return s.buildList(p.Party, name, &l) })
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

// buildList makes the lines of a list for one gateway.
func (s *Server) buildList(p *model.Party, name wire.ListName, l *listContent) ([]byte, error) {
	to, err := encOf(p)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	m := wire.Manifest{List: name, Version: l.version, Receiver: p.ID, NotAfter: wire.FormatTime(now.Add(s.cfg.ListLife)),
		Rows: len(l.rows) + len(l.policies), Pages: []wire.ManifestPage{}, Locks: l.locks}
	var pages [][]byte
	page := func(table string, body []byte, ext headerExt) error {
		line, err := s.signList(table, p.ID, body, ext, to)
		if err == nil {
			m.Pages = append(m.Pages, wire.ManifestPage{SM3: wire.PageHash(line), Bytes: len(line)})
			pages = append(pages, line)
		}
		return err
	}
	if name == wire.GrantsList {
		err = grantPages(p, l.rows, now, page)
	} else {
		err = policyPages(p, l.policies, now, page)
	}
	if err != nil {
		return nil, fmt.Errorf("make list of %s: %w", name, err)
	}
	body, err := wire.EncodeExtension(&m)
	if err != nil {
		return nil, err
	}
	head, err := s.signList(wire.TypeManifest, p.ID, body, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make list of %s: %w", name, err)
	}
	return append(bytes.Join(append([][]byte{head}, pages...), []byte("\n")), '\n'), nil
}

// signList returns an envelope of the list signer, in one line.
func (s *Server) signList(msgType, receiver string, body []byte, ext headerExt, to *smx509.Certificate) ([]byte, error) {
	if ext == nil {
		ext = headerExt{}
	}
	own := s.own.Load()
	ext[wire.ExtSigner] = own.signerExt
	return own.list.Seal(envelope.Header{MsgType: msgType, Receiver: receiver, Ext: ext}, body, to)
}

func grantPages(p *model.Party, rows []*model.Row, now time.Time, page func(string, []byte, headerExt) error) error {
	slices.SortFunc(rows, func(a, b *model.Row) int { return a.Pair.Compare(b.Pair) })
	for len(rows) > 0 {
		list := wire.GrantList{GatewayID: p.ID, DeviceID: p.DeviceID, KeyType: keyType, Timestamp: wire.FormatTime(now)}
		var facts []wire.RowFacts
		for size := 0; len(rows) > 0 && size < pageBytes; rows = rows[1:] {
			list.Data = append(list.Data, rows[0].Grant())
			facts = append(facts, rows[0].Facts(len(facts)))
			size += 320 + 18*len(rows[0].Apps)
		}
		body, err := wire.Encode(&list)
		if err == nil {
			err = page("T6", body, headerExt{}.with(wire.ExtRows, facts))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func policyPages(p *model.Party, policies []*wire.Policy, now time.Time, page func(string, []byte, headerExt) error) error {
	slices.SortFunc(policies, func(a, b *wire.Policy) int { return cmp.Compare(a.PolicyID, b.PolicyID) })
	for chunk := range slices.Chunk(policies, 2000) {
		list := wire.PolicyList{GatewayID: p.ID, DeviceID: p.DeviceID, Timestamp: wire.FormatTime(now)}
		for _, row := range chunk {
			list.PolicyList = append(list.PolicyList, *row)
		}
		body, err := wire.Encode(&list)
		if err == nil {
			err = page("T8", body, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
