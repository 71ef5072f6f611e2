package audit

import (
	"cmp"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/yumen-zt/yumen/internal/clock"
	"github.com/yumen-zt/yumen/internal/disk"
)

// Sealing is what a sealed audit store needs; [FileConfig.Sealed]. Its folder
// holds segments, sealed with SM4-GCM under a key each, chained with SM3, and
// checkpoints in them, signed by the owner: what was written before a
// checkpoint can not be changed, moved or taken out without [Verify] seeing it.
//
// A segment, big endian; all numbers of records begin at 1:
//
//	0    8   "YUMENAUD"
//	8    2   version, 2; 1 had no packed records
//	10   6   zero
//	16   16  salt, random
//	32   8   ordinal, also its name; one above the segment's before
//	40   8   made at, Unix nanoseconds
//	48   8   number of the first record
//	56   32  chain value at the end of the segment before
//	88   32  HMAC-SM3(key, "header", bytes 0 to 87)
//	120      frames
//
// A frame:
//
//	0    4   n, bytes of what follows byte 36
//	4    1   kind: 1 records, 2 checkpoint, 3 end of segment, 4 records packed
//	5    3   zero
//	8    8   index in the segment, from 1
//	16   8   number of its first record; of the next one, when it has none
//	24   4   records in it
//	28   8   time, Unix nanoseconds
//	36   n   sealed content and 16 bytes of tag
//
// The segment's key is the first 16 bytes of HMAC-SM3(key, "segment" | salt |
// ordinal), the nonce the index, bytes 0 to 35 are additional data. The chain
// starts as SM3(chain value of the segment before | salt | ordinal), and each
// frame makes it SM3(chain | tag). Each start, and each fault of the disk,
// begins a new segment, so no key and nonce seal twice.
type Sealing struct {
	Dir  string                                // made if it is not there, mode 0700; required
	Key  []byte                                // 16 bytes or more; required
	Seal func(key []byte) (cipher.AEAD, error) // SM4-GCM of a 16-byte key; required
	// Sign signs a checkpoint and names the signer's chain, DER, leaf first;
	// required.
	Sign func(text []byte) (signature []byte, chain [][]byte, err error)

	KeepFor   time.Duration // age at which a segment may go, and goes, but not within a day of the clock being set forward; default 180 days
	Total     int64         // bytes of all segments, beyond which the oldest go before their time; default: no bound
	EachAfter time.Duration // between two checkpoints; default 1 minute
}

// DefaultKeepFor is how long audit records are kept.
const DefaultKeepFor = 180 * 24 * time.Hour

const (
	sealedMagic  = "YUMENAUD"
	sealedHeader = 120
	frameHeader  = 36
	tagBytes     = 16
	maxSealed    = 8 << 20 // of a frame

	frameRecords    = 1
	frameCheckpoint = 2
	frameEnd        = 3
	framePacked     = 4 // records, see pack.go
)

var be = binary.BigEndian

type chainValue = [sm3.Size]byte

// segmentHead is a segment's header.
type segmentHead struct {
	salt    [16]byte
	ordinal uint64
	made    int64
	first   uint64
	prev    chainValue
}

func (h *segmentHead) encode(key []byte) []byte {
	b := make([]byte, sealedHeader)
	copy(b, sealedMagic)
	be.PutUint16(b[8:], 2)
	copy(b[16:], h.salt[:])
	be.PutUint64(b[32:], h.ordinal)
	be.PutUint64(b[40:], uint64(h.made))
	be.PutUint64(b[48:], h.first)
	copy(b[56:], h.prev[:])
	copy(b[88:], mac(key, "header", b[:88]))
	return b
}

func decodeHead(key, b []byte) (h segmentHead, err error) {
	if len(b) < sealedHeader || string(b[:8]) != sealedMagic || be.Uint16(b[8:]) != 1 && be.Uint16(b[8:]) != 2 {
		return h, errors.New("read audit segment: it is none, or of another version")
	}
	copy(h.salt[:], b[16:])
	h.ordinal, h.made, h.first = be.Uint64(b[32:]), int64(be.Uint64(b[40:])), be.Uint64(b[48:])
	copy(h.prev[:], b[56:])
	if !hmac.Equal(mac(key, "header", b[:88]), b[88:sealedHeader]) {
		return h, errors.New("read audit segment: its header was altered, or another key wrote it")
	}
	return h, nil
}

func (h *segmentHead) identity() []byte {
	return be.AppendUint64(h.salt[:len(h.salt):len(h.salt)], h.ordinal)
}

func (h *segmentHead) aead(s *Sealing) (cipher.AEAD, error) {
	a, err := s.Seal(mac(s.Key, "segment", h.identity())[:16])
	if err == nil && (a.NonceSize() != 12 || a.Overhead() != tagBytes) {
		err = errors.New("the cipher has another nonce or tag")
	}
	if err != nil {
		return nil, fmt.Errorf("make audit segment cipher: %w", err)
	}
	return a, nil
}

func (h *segmentHead) chain() chainValue {
	return sm3.Sum(append(append([]byte(nil), h.prev[:]...), h.identity()...))
}

func mac(key []byte, label string, b []byte) []byte {
	m := hmac.New(sm3.New, key)
	m.Write([]byte(label))
	m.Write(b)
	return m.Sum(nil)
}

func chained(c chainValue, frame []byte) chainValue {
	var b [sm3.Size + tagBytes]byte
	copy(b[:], c[:])
	copy(b[sm3.Size:], frame[len(frame)-tagBytes:])
	return sm3.Sum(b[:])
}

func frameNonce(index uint64) (n [12]byte) {
	be.PutUint64(n[4:], index)
	return n
}

// Checkpoint is the owner's word on everything up to a record.
type Checkpoint struct {
	Segment   uint64    `json:"segment"`
	Records   uint64    `json:"records"` // number of the last one before it
	Head      string    `json:"head"`    // chain value before it
	Time      time.Time `json:"time"`
	Chain     [][]byte  `json:"chain,omitempty"` // certificates of the signer, leaf first
	Signature []byte    `json:"signature,omitempty"`
}

// text is what is signed.
func (c Checkpoint) text() []byte {
	c.Chain, c.Signature = nil, nil
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err) // plain values
	}
	return append([]byte("yumen-audit-checkpoint-v1\n"), raw...)
}

// sealedStore writes segments. It is for one goroutine.
type sealedStore struct {
	Sealing
	now     func() time.Time
	most    int64 // bytes of a segment
	rotated func()

	head    segmentHead // of the segment being written
	aead    cipher.AEAD
	f       *os.File // nil: the next write makes a segment
	size    int64
	index   uint64     // of the last frame
	chain   chainValue // after it
	dirty   bool
	ordinal uint64     // of the newest segment
	next    uint64     // number of the next record
	prev    chainValue // at the end of the newest segment that is closed
	checked time.Time  // last checkpoint
	signed  uint64     // records that it covers
	pruned  time.Time
	clock   *clock.Watcher
	ahead   time.Time    // the clock was set forward at this time, which has its monotonic reading
	old     []sealedFile // closed ones, oldest first
	buf     []byte
	packed  []byte
}

// sealedFile is a segment's file.
type sealedFile struct {
	ordinal uint64
	path    string
	size    int64
	made    time.Time // from its header; of one that was damaged, when it was last written
}

func openSealed(s Sealing, most int64, now func() time.Time, rotated func()) (*sealedStore, error) {
	if s.Dir == "" || len(s.Key) < 16 || s.Seal == nil || s.Sign == nil {
		return nil, errors.New("a sealed store needs a folder, a key, a cipher and a signer")
	}
	s.KeepFor = cmp.Or(s.KeepFor, DefaultKeepFor)
	s.EachAfter = cmp.Or(s.EachAfter, time.Minute)
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	began := time.Now()
	w := &sealedStore{Sealing: s, now: now, most: most, rotated: rotated, next: 1, checked: now()}
	w.clock = clock.NewWatcher(now, func() time.Duration { return time.Since(began) })
	files, err := sealedFiles(s.Dir)
	if err != nil {
		return nil, err
	}
	for i := range files {
		if h, err := readHead(&s, files[i].path); err == nil {
			files[i].made = time.Unix(0, h.made)
		}
	}
	w.old = files
	if n := len(files); n > 0 {
		w.ordinal = files[n-1].ordinal
		e := endOf(&s, files[n-1].path)
		w.prev, w.next = e.chain, max(e.next, 1)
	}
	w.signed = w.next - 1
	return w, w.create()
}

// sealedFiles lists the segments of a folder in their order.
func sealedFiles(dir string) ([]sealedFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []sealedFile
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".audit")
		n, err := strconv.ParseUint(name, 16, 64)
		if !ok || err != nil || len(name) != 16 || !e.Type().IsRegular() {
			continue
		}
		f := sealedFile{ordinal: n, path: filepath.Join(dir, e.Name())}
		if fi, err := e.Info(); err == nil {
			f.size, f.made = fi.Size(), fi.ModTime()
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b sealedFile) int { return cmp.Compare(a.ordinal, b.ordinal) })
	return out, nil
}

// create begins a segment.
func (w *sealedStore) create() error {
	w.head = segmentHead{ordinal: w.ordinal + 1, made: w.now().UnixNano(), first: w.next, prev: w.prev}
	if _, err := io.ReadFull(rand.Reader, w.head.salt[:]); err != nil {
		return err
	}
	var err error
	if w.aead, err = w.head.aead(&w.Sealing); err != nil {
		return err
	}
	path := filepath.Join(w.Dir, fmt.Sprintf("%016x.audit", w.head.ordinal))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(w.head.encode(w.Key)); err != nil {
		f.Close()
		os.Remove(path)
		return err
	}
	if err := disk.SyncDir(w.Dir); err != nil { // else a power cut takes it away, whatever is synced in it
		f.Close()
		os.Remove(path)
		return err
	}
	w.f, w.size, w.index, w.chain, w.dirty = f, sealedHeader, 0, w.head.chain(), true
	w.ordinal = w.head.ordinal
	return nil
}

func (w *sealedStore) write(lines []byte, records int) error {
	w.packed = pack(w.packed[:0], lines)
	packed := w.packed
	if cap(packed) > batchBytes {
		w.packed = nil
	}
	if w.f != nil && w.size+int64(len(packed)) > w.most && w.index > 0 {
		if err := w.end(); err != nil {
			return err
		}
		w.rotated()
	}
	if w.f == nil {
		if err := w.create(); err != nil {
			return err
		}
	}
	if records == 0 { // a record of our own
		records = 1
	}
	if err := w.frame(framePacked, packed, records); err != nil {
		return err
	}
	w.next += uint64(records)
	return nil
}

// frame seals and writes one frame. After a fault of the disk the segment is
// left for good.
func (w *sealedStore) frame(kind byte, content []byte, records int) error {
	w.index++
	b := slices.Grow(w.buf[:0], frameHeader+len(content)+tagBytes)[:frameHeader]
	be.PutUint32(b, uint32(len(content)+tagBytes))
	b[4], b[5], b[6], b[7] = kind, 0, 0, 0
	be.PutUint64(b[8:], w.index)
	be.PutUint64(b[16:], w.next)
	be.PutUint32(b[24:], uint32(records))
	be.PutUint64(b[28:], uint64(w.now().UnixNano()))
	nonce := frameNonce(w.index)
	b = w.aead.Seal(b, nonce[:], content, b[:frameHeader])
	if cap(b) <= 4*batchBytes {
		w.buf = b
	}
	if _, err := w.f.Write(b); err != nil {
		_ = w.f.Truncate(w.size) // half a frame is passed over, too
		w.leave()
		return err
	}
	w.size += int64(len(b))
	w.chain, w.dirty = chained(w.chain, b), true
	return nil
}

// leave closes the segment as it is.
func (w *sealedStore) leave() {
	w.f.Close()
	w.old = append(w.old, sealedFile{w.head.ordinal, w.f.Name(), w.size, time.Unix(0, w.head.made)})
	w.f, w.prev, w.dirty = nil, w.chain, false
}

// end writes a checkpoint and the end frame, and closes the segment.
func (w *sealedStore) end() error {
	if w.signed < w.next-1 {
		if err := w.checkpoint(); err != nil {
			return err
		}
	}
	if err := w.frame(frameEnd, w.chain[:], 0); err != nil {
		return err
	}
	err := w.sync()
	if w.f != nil {
		w.leave()
	}
	return err
}

func (w *sealedStore) checkpoint() error {
	c := Checkpoint{Segment: w.head.ordinal, Records: w.next - 1, Head: hex.EncodeToString(w.chain[:]), Time: w.now().UTC()}
	var err error
	if c.Signature, c.Chain, err = w.Sign(c.text()); err != nil {
		return fmt.Errorf("sign audit checkpoint: %w", err)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := w.frame(frameCheckpoint, raw, 0); err != nil {
		return err
	}
	w.checked, w.signed = w.now(), c.Records
	return nil
}

func (w *sealedStore) sync() error {
	if w.f == nil || !w.dirty {
		return nil
	}
	if err := w.f.Sync(); err != nil {
		w.leave() // what a failed sync left of it is not known
		return err
	}
	w.dirty = false
	return nil
}

func (w *sealedStore) tick() error {
	now := w.now()
	if by, stepped := w.clock.Step(); stepped && by > 0 {
		w.ahead = time.Now()
	}
	if age := now.Sub(w.pruned); age >= time.Hour || age < 0 || w.Total > 0 {
		w.pruned = now
		w.prune(now)
	}
	if age := now.Sub(w.checked); w.f == nil || w.signed == w.next-1 || age >= 0 && age < w.EachAfter {
		return nil
	}
	return w.checkpoint()
}

func (w *sealedStore) close() error {
	if w.f == nil {
		return nil
	}
	return w.end()
}
