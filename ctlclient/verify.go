package ctlclient

import (
	"bufio"
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// VerifierConfig is what a [Verifier] needs. The zero value of an optional
// field selects its default.
type VerifierConfig struct {
	GatewayID string // required
	DeviceID  string // required
	// ControlID is whose lists are taken; empty: those of every signer under
	// Roots.
	ControlID string
	Roots     *smx509.CertPool // the pinned list root; required
	Decrypter crypto.Decrypter // opens pages sealed to us; required
	Profile   wire.Profile
	MaxBytes  int64            // of a whole list; default 256 MiB
	Now       func() time.Time // default time.Now
}

// Verifier reads lists and deltas and refuses those that are not genuine,
// complete, ours and fresh. It may be used by several goroutines at once.
type Verifier struct{ cfg VerifierConfig }

// Floor is what a gateway has seen of one list. The zero Floor takes anything.
type Floor struct {
	Version uint64 // a list below it is refused (S4)
	Digest  string // of the rows of a list of exactly Version; empty: not known
}

// maxListBytes is the default of VerifierConfig.MaxBytes.
const maxListBytes = 256 << 20

// NewVerifier checks cfg.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	if cfg.GatewayID == "" || cfg.DeviceID == "" || cfg.Roots == nil || cfg.Decrypter == nil {
		return nil, errors.New("make list verifier: gateway, device, list root and encryption key are required")
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = maxListBytes
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{cfg: cfg}, nil
}

// Grants reads an access grant list. It returns a [*ListError], and nothing of
// the list, unless every byte is right.
func (v *Verifier) Grants(r io.Reader, floor Floor) (*Grants, error) {
	l, err := v.read(r, wire.GrantsList, floor, arriving(v.cfg.Now))
	if err != nil {
		return nil, err
	}
	return l.grants(), nil
}

// Policies reads a policy list, like [Verifier.Grants].
func (v *Verifier) Policies(r io.Reader, floor Floor) (*Policies, error) {
	l, err := v.read(r, wire.PoliciesList, floor, arriving(v.cfg.Now))
	if err != nil {
		return nil, err
	}
	return l.policies(), nil
}

// list is a verified list of either kind.
type list struct {
	manifest wire.Manifest
	notAfter time.Time
	digest   string // of rows and locks, whatever their order and pages
	rows     []GrantRow
	rules    []wire.Policy
	badRules []wire.Policy
	faults   []RowFault
}

func (l *list) grants() *Grants {
	return &Grants{Version: l.manifest.Version, Digest: l.digest, NotAfter: l.notAfter, Rows: l.rows, Faults: l.faults}
}

func (l *list) policies() *Policies {
	return &Policies{Version: l.manifest.Version, Digest: l.digest, NotAfter: l.notAfter, Rows: l.rules, BadRows: l.badRules, Locks: l.manifest.Locks, Faults: l.faults}
}

// origin is where a list comes from.
type origin struct {
	// signedAt is the time at which the signer's certificate must be valid: now for
	// what arrives, the time of signing for what this gateway has stored itself.
	signedAt func() time.Time
	// stored: this gateway has taken the list before. Its manifest is verified
	// again, and vouches for the bytes of each page.
	stored bool
}

func arriving(now func() time.Time) origin { return origin{signedAt: now} }

// read is the walk of a list.
//
//	1 the manifest: signer, receiver, kind, version, life
//	2 each page: length and hash, then signature and seal, then rows
//	3 nothing missing, nothing behind
//	4 the same version has the same content
func (v *Verifier) read(r io.Reader, want wire.ListName, floor Floor, from origin) (*list, error) {
	refuse := func(why reason.Reason, format string, args ...any) (*list, error) {
		return nil, &ListError{List: want, Reason: why, Err: fmt.Errorf(format, args...)}
	}
	in := &lineReader{r: bufio.NewReaderSize(io.LimitReader(r, v.cfg.MaxBytes+1), 1<<16), left: v.cfg.MaxBytes}

	// 1
	line, err := in.next()
	if err != nil {
		return nil, in.fault(want, "manifest", err)
	}
	head, err := v.openManifest(line, from.signedAt)
	if err != nil {
		return nil, listFault(want, "manifest", err)
	}
	m, err := wire.DecodeExtension[wire.Manifest](head.Body)
	if err != nil {
		return refuse(reason.MessageInvalid, "manifest: %w", err)
	}
	l := &list{manifest: *m}
	l.notAfter, _ = wire.ParseTime(m.NotAfter) // checked by Manifest.Check
	switch {
	case m.List != want:
		return refuse(reason.MessageInvalid, "manifest: it is for the %s", m.List)
	case m.Receiver != v.cfg.GatewayID:
		return refuse(reason.ListOtherReceiver, "manifest: it is for %q", m.Receiver)
	case v.cfg.ControlID != "" && head.Header.Sender != v.cfg.ControlID:
		return refuse(reason.ListSigner, "manifest: sender %q is not control center %s", head.Header.Sender, v.cfg.ControlID)
	case m.Version < floor.Version:
		return refuse(reason.ListOlder, "manifest: version %d, %d was seen", m.Version, floor.Version)
	case !v.cfg.Now().Before(l.notAfter):
		return refuse(reason.ListExpired, "manifest: its life ended at %s", m.NotAfter)
	}

	// 2
	pages, err := v.pageReceiver(head, from.signedAt)
	if err != nil {
		return refuse(reason.InternalError, "%w", err)
	}
	sum := &contentSum{}
	open := pages.Open
	if from.stored {
		open = pages.OpenVouched
	}
	done, err := v.pages(in, want, open, m.Pages)
	total, rows := 0, 0
	for i := range done {
		rows += len(done[i].rows)
	}
	l.rows, sum.rows = make([]GrantRow, 0, rows), make([][32]byte, 0, rows+len(m.Locks))
	for i := range done {
		p := &done[i]
		if p.err != nil {
			return nil, listFault(want, fmt.Sprintf("page %d", i), p.err)
		}
		if total+p.n > m.Rows {
			return refuse(reason.ListIncomplete, "page %d: %d rows so far, the manifest says %d", i, total+p.n, m.Rows)
		}
		l.add(p, total)
		sum.rows = append(sum.rows, p.digests...)
		total += p.n
		*p = page{} // its rows are in l
	}
	if err != nil {
		return nil, err
	}

	// 3
	if total != m.Rows {
		return refuse(reason.ListIncomplete, "%d rows, the manifest says %d", total, m.Rows)
	}
	if line, err := in.next(); err != io.EOF {
		if err != nil {
			return nil, in.fault(want, "end", err)
		}
		return refuse(reason.ListIncomplete, "%d bytes behind the last page", len(line))
	}

	// 4
	for _, k := range m.Locks {
		sum.rows = append(sum.rows, wire.LockDigest(&k))
	}
	l.digest = sum.String()
	if m.Version == floor.Version && strings.HasPrefix(floor.Digest, digestForm) && floor.Digest != l.digest {
		return refuse(reason.ListOlder, "version %d was seen with another content", m.Version)
	}
	return l, nil
}

// openManifest verifies the list signer's chain under the pinned root and the
// manifest under the signer.
func (v *Verifier) openManifest(line []byte, at func() time.Time) (*envelope.Message, error) {
	var signer error
	resolve := envelope.ListSigner(v.cfg.Roots, at)
	r, err := envelope.NewReceiver(envelope.Config{
		ID: v.cfg.GatewayID, Decrypter: v.cfg.Decrypter, Skew: -1, MaxBytes: wire.MaxMessage, Now: at,
		Resolve: func(h *envelope.Header) (c *smx509.Certificate, err error) {
			c, signer = resolve(h)
			return c, signer
		},
	})
	if err != nil {
		return nil, err
	}
	m, err := r.Open(line, wire.TypeManifest)
	if signer != nil {
		return nil, &ListError{Reason: reason.ListSigner, Err: signer}
	}
	return m, err
}

// pageReceiver opens pages of the very signer of the manifest.
func (v *Verifier) pageReceiver(head *envelope.Message, at func() time.Time) (*envelope.Receiver, error) {
	return envelope.NewReceiver(envelope.Config{
		ID: v.cfg.GatewayID, Decrypter: v.cfg.Decrypter, RequireSealed: true, Skew: -1, MaxBytes: wire.MaxMessage, Now: at,
		Signers: func(keyID, sender string) (*smx509.Certificate, error) {
			if keyID != head.Header.KeyID || sender != head.Header.Sender {
				return nil, errors.New("another signer than the manifest's")
			}
			return head.Signer, nil
		},
	})
}

// page is one page, opened and read.
type page struct {
	n        int // rows, the bad ones included
	rows     []GrantRow
	rules    []wire.Policy
	badRules []wire.Policy
	faults   []RowFault // rows counted within the page
	digests  [][32]byte
	err      error
}

// add appends what p has to l; before are the rows of the pages before it.
func (l *list) add(p *page, before int) {
	l.rows = append(l.rows, p.rows...)
	l.rules = append(l.rules, p.rules...)
	l.badRules = append(l.badRules, p.badRules...)
	for _, f := range p.faults {
		f.Row += before
		l.faults = append(l.faults, f)
	}
}

// pages reads the pages of the manifest, on a few processors at once: of a list
// of any size as many pages are held as are being opened. What was read before
// a fault is returned with it; a page that is refused comes before the fault.
func (v *Verifier) pages(in *lineReader, want wire.ListName, open opener, all []wire.ManifestPage) ([]page, error) {
	done := make([]page, len(all))
	free := make(chan struct{}, min(runtime.GOMAXPROCS(0), 4))
	var workers sync.WaitGroup
	for i, p := range all {
		line, err := in.next()
		if err != nil {
			workers.Wait()
			return done[:i], in.fault(want, fmt.Sprintf("page %d", i), err)
		}
		if len(line) != p.Bytes || wire.PageHash(line) != p.SM3 {
			workers.Wait()
			return done[:i], &ListError{List: want, Reason: reason.ListIncomplete, Err: fmt.Errorf("page %d is not the one of the manifest", i)}
		}
		line, to := bytes.Clone(line), &done[i]
		free <- struct{}{}
		workers.Go(func() {
			*to = v.page(want, open, line)
			<-free
			runtime.Gosched() // a long list must not hold up messages and requests
		})
	}
	workers.Wait()
	return done, nil
}

// page opens one page.
func (v *Verifier) page(want wire.ListName, open opener, line []byte) (p page) {
	p.n, p.err = v.readPage(&p, want, open, line)
	return p
}

// opener opens the envelope of a page.
type opener func(raw []byte, types ...string) (*envelope.Message, error)

func (v *Verifier) readPage(l *page, want wire.ListName, open opener, line []byte) (int, error) {
	var gatewayID, deviceID string
	var bad []wire.RowError
	var good int
	if want == wire.GrantsList {
		m, err := open(line, "T6")
		if err != nil {
			return 0, err
		}
		t, errs, err := wire.DecodeGrantList(m.Body, v.cfg.Profile)
		if err != nil {
			return 0, invalid(err)
		}
		l.rows, l.digests = make([]GrantRow, 0, len(t.Data)), make([][32]byte, 0, len(t.Data))
		gatewayID, deviceID, bad, good = t.GatewayID, t.DeviceID, errs, len(t.Data)
		facts, faults, err := readFacts(m.Header.Ext[wire.ExtRows], good+len(bad))
		if err != nil {
			return 0, invalid(err)
		}
		for i, g := range t.Data {
			row := wire.OriginalRow(bad, i)
			if f := faults[row]; f != nil { // a fact that cannot be read: the row grants nothing
				l.faults = append(l.faults, RowFault{Row: row, ID: g.UserID + "/" + g.DeviceID, Err: f})
				continue
			}
			full := GrantRow{Grant: g}
			facts[row].into(&full)
			digest := facts[row].digest(&g)
			full.Sum = wire.RowSum(digest)
			l.rows = append(l.rows, full)
			l.digests = append(l.digests, digest)
		}
	} else {
		m, err := open(line, "T8")
		if err != nil {
			return 0, err
		}
		t, errs, err := wire.DecodePolicyList(m.Body, v.cfg.Profile)
		if err != nil {
			return 0, invalid(err)
		}
		gatewayID, deviceID, bad, good = t.GatewayID, t.DeviceID, errs, len(t.PolicyList)
		l.rules = t.PolicyList
		for _, p := range t.PolicyList {
			l.digests = append(l.digests, wire.PolicyDigest(&p))
		}
		for _, e := range bad {
			l.badRules = append(l.badRules, wire.Policy{PolicyID: e.ID, PolicyType: "invalid"})
		}
	}
	if gatewayID != v.cfg.GatewayID || deviceID != v.cfg.DeviceID {
		return 0, &ListError{Reason: reason.ListOtherReceiver, Err: fmt.Errorf("it is for %q on %q", gatewayID, deviceID)}
	}
	for _, e := range bad {
		l.faults = append(l.faults, RowFault{Row: e.Row, ID: e.ID, Err: e.Err})
		l.digests = append(l.digests, sm3.Sum([]byte("bad "+e.ID)))
	}
	return good + len(bad), nil
}

func invalid(err error) error { return &ListError{Reason: reason.MessageInvalid, Err: err} }

// listFault gives an error of a part of a list its final form.
func listFault(name wire.ListName, part string, err error) error {
	var le *ListError
	if errors.As(err, &le) {
		return &ListError{List: name, Reason: le.Reason, Err: fmt.Errorf("%s: %w", part, le.Err)}
	}
	var re *envelope.RejectedError
	if errors.As(err, &re) {
		why := re.Reason
		if why == reason.MessageReceiver {
			why = reason.ListOtherReceiver
		}
		return &ListError{List: name, Reason: why, Err: fmt.Errorf("%s: %w", part, withCause(err))}
	}
	return &ListError{List: name, Reason: reason.InternalError, Err: fmt.Errorf("%s: %w", part, err)}
}

// lineReader reads lines of at most one message within a limit of bytes.
type lineReader struct {
	r    *bufio.Reader
	left int64
	buf  []byte
}

var (
	errLineTooLong = errors.New("a line is longer than a message may be")
	errListTooLong = errors.New("the list is larger than the limit")
)

// next returns the next line without its line feed, valid until the next call.
// It returns io.EOF at a clean end only. The last line may lack its line feed.
func (l *lineReader) next() ([]byte, error) {
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		l.left -= int64(len(part))
		l.buf = append(l.buf, part...)
		switch {
		case l.left < 0:
			return nil, errListTooLong
		case len(l.buf) > wire.MaxMessage+1:
			return nil, errLineTooLong
		case err == nil:
			return bytes.TrimSuffix(l.buf, []byte{'\n'}), nil
		case err == io.EOF && len(l.buf) > 0:
			return l.buf, nil
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return nil, err
		}
	}
}

// fault turns next's error into a refusal; an error of the connection stays as
// it is, for it says nothing about the list.
func (l *lineReader) fault(name wire.ListName, part string, err error) error {
	switch {
	case err == io.EOF:
		return &ListError{List: name, Reason: reason.ListIncomplete, Err: fmt.Errorf("%s is missing", part)}
	case err == errLineTooLong || err == errListTooLong:
		return &ListError{List: name, Reason: reason.MessageTooLarge, Err: fmt.Errorf("%s: %w", part, err)}
	}
	return fmt.Errorf("read %s: %s: %w", name, part, err)
}

// contentSum is a digest of rows that does not depend on their order: pages are
// sealed afresh each time, so their bytes say nothing about their content.
type contentSum struct{ rows [][32]byte }

// digestForm stands before a digest: one that was stored in an older form is
// not compared.
const digestForm = "2:"

func (s *contentSum) String() string {
	slices.SortFunc(s.rows, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	h := sm3.New()
	for i := range s.rows {
		h.Write(s.rows[i][:])
	}
	return digestForm + hex.EncodeToString(h.Sum(nil))
}
