package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// segmentEnd is where a segment stops.
type segmentEnd struct {
	chain chainValue
	next  uint64 // number of the next record
}

func readHead(s *Sealing, path string) (h segmentHead, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	b := make([]byte, sealedHeader)
	if _, err := io.ReadFull(f, b); err != nil {
		return h, fmt.Errorf("read audit segment: %w", err)
	}
	return decodeHead(s.Key, b)
}

// endOf returns where the segment at path stops, as far as its frames are
// genuine.
func endOf(s *Sealing, path string) (e segmentEnd) {
	_, _ = walk(s, path, func(h *segmentHead, f *sealedFrame) error {
		if e = (segmentEnd{h.chain(), h.first}); f != nil {
			e = segmentEnd{f.chain, f.first + uint64(f.records)}
		}
		return nil
	})
	return e
}

// sealedFrame is a frame that opened.
type sealedFrame struct {
	kind    byte
	first   uint64
	records int
	at      time.Time
	content []byte // valid during the call
	before  chainValue
	chain   chainValue // after it
}

// errTorn is an end in the middle of a frame, as a crash leaves it.
var errTorn = errors.New("the last frame is not whole")

// walk gives f the header alone, then each frame of the segment at path, until
// the first that is not genuine. Whatever is behind an end frame is a fault.
func walk(s *Sealing, path string, f func(*segmentHead, *sealedFrame) error) (*segmentHead, error) {
	raw, err := os.ReadFile(path) // a segment is bounded
	if err != nil {
		return nil, err
	}
	h, err := decodeHead(s.Key, raw)
	if err != nil {
		return nil, err
	}
	aead, err := h.aead(s)
	if err != nil {
		return nil, err
	}
	if err := f(&h, nil); err != nil {
		return &h, err
	}
	chain, next, index, ended := h.chain(), h.first, uint64(0), false
	for rest := raw[sealedHeader:]; len(rest) > 0; {
		if ended {
			return &h, errors.New("there are bytes behind its end")
		}
		if len(rest) < frameHeader {
			return &h, errTorn
		}
		n := be.Uint32(rest)
		if n < tagBytes || n > maxSealed {
			return &h, errors.New("a frame has an impossible length")
		}
		if uint64(len(rest)) < frameHeader+uint64(n) {
			return &h, errTorn
		}
		b := rest[:frameHeader+int(n)]
		rest = rest[len(b):]
		index++
		fr := &sealedFrame{kind: b[4], first: be.Uint64(b[16:]), records: int(be.Uint32(b[24:])), at: time.Unix(0, int64(be.Uint64(b[28:]))), before: chain, chain: chained(chain, b)}
		nonce := frameNonce(be.Uint64(b[8:]))
		if fr.content, err = aead.Open(nil, nonce[:], b[frameHeader:], b[:frameHeader]); err != nil {
			return &h, fmt.Errorf("frame %d was altered", index)
		}
		if fr.kind == framePacked {
			if fr.content, err = unpack(fr.content, maxSealed); err != nil {
				return &h, fmt.Errorf("frame %d: %w", index, err)
			}
			fr.kind = frameRecords
		}
		if be.Uint64(b[8:]) != index || fr.first != next {
			return &h, fmt.Errorf("frame %d is not in its place", index)
		}
		chain, next, ended = fr.chain, next+uint64(fr.records), fr.kind == frameEnd
		if fr.kind == frameEnd && !bytes.Equal(fr.content, fr.before[:]) {
			return &h, errors.New("its end does not fit what is before it")
		}
		if err := f(&h, fr); err != nil {
			return &h, err
		}
	}
	return &h, nil
}

// Read gives f each record of the store with its number, as a line of JSON
// without its line feed that is valid during the call, the oldest first. It may
// read beside a process that writes, whose newest records it may miss. A part
// that was altered is passed over, and the error at the end says so.
func (s *Sealing) Read(f func(number uint64, at time.Time, line []byte) error) error {
	files, err := sealedFiles(s.Dir)
	if err != nil {
		return fmt.Errorf("read audit store: %w", err)
	}
	var faults []error
	var stop error
	for _, file := range files {
		_, err := walk(s, file.path, func(_ *segmentHead, fr *sealedFrame) error {
			if fr == nil || fr.kind != frameRecords {
				return nil
			}
			number := fr.first
			for line := range bytes.Lines(fr.content) {
				if stop = f(number, fr.at, bytes.TrimSuffix(line, []byte{'\n'})); stop != nil {
					return stop
				}
				number++
			}
			return nil
		})
		if stop != nil {
			return stop
		}
		if err != nil && !errors.Is(err, errTorn) && !errors.Is(err, os.ErrNotExist) {
			faults = append(faults, fmt.Errorf("read audit segment %x: %w", file.ordinal, err))
		}
	}
	return errors.Join(faults...)
}

// StoreProof is what [Sealing.Verify] found.
type StoreProof struct {
	Whole       bool         `json:"whole"` // no faults
	Segments    int          `json:"segments"`
	From        uint64       `json:"from"` // number of the first record; older ones went with their time
	Records     uint64       `json:"records"`
	Oldest      time.Time    `json:"oldest,omitzero"`
	Newest      time.Time    `json:"newest,omitzero"`
	Checkpoints int          `json:"checkpoints"`    // signatures that were verified
	Signed      uint64       `json:"signed"`         // the last record that a checkpoint covers
	Last        *Checkpoint  `json:"last,omitzero"`  // the newest one
	Torn        int          `json:"torn"`           // ends as a crash leaves them
	Faults      []StoreFault `json:"faults"`         // what does not fit
	Head        string       `json:"head,omitempty"` // chain value at the end
}

// StoreFault is something in a store that does not fit.
type StoreFault struct {
	Segment string `json:"segment"`
	What    string `json:"what"`
}

// Verify reads the whole store, opens each frame, computes the chain over all
// segments and has verify look at each checkpoint: its chain of certificates,
// the text, the signature, and when it was signed.
func (s *Sealing) Verify(verify func(chain [][]byte, text, signature []byte, at time.Time) error) (*StoreProof, error) {
	files, err := sealedFiles(s.Dir)
	if err != nil {
		return nil, fmt.Errorf("verify audit store: %w", err)
	}
	p := &StoreProof{Segments: len(files), Faults: []StoreFault{}}
	var end *segmentEnd
	for i, file := range files {
		fault := func(format string, args ...any) {
			p.Faults = append(p.Faults, StoreFault{fmt.Sprintf("%016x", file.ordinal), fmt.Sprintf(format, args...)})
		}
		if i > 0 && file.ordinal != files[i-1].ordinal+1 {
			fault("%d segments before it are missing", file.ordinal-files[i-1].ordinal-1)
			end = nil
		}
		var last segmentEnd
		h, err := walk(s, file.path, func(h *segmentHead, fr *sealedFrame) error {
			if fr == nil {
				last = segmentEnd{h.chain(), h.first}
				return nil
			}
			if p.Records == 0 && fr.records > 0 {
				p.From, p.Oldest = fr.first, fr.at
			}
			if fr.records > 0 {
				p.Newest = fr.at
			}
			p.Records += uint64(fr.records)
			if n := bytes.Count(fr.content, []byte{'\n'}); fr.kind == frameRecords && n != fr.records {
				fault("a frame of %d records has %d", fr.records, n)
			}
			if fr.kind == frameCheckpoint {
				c := new(Checkpoint)
				err := json.Unmarshal(fr.content, c)
				switch {
				case err != nil:
				case c.Segment != h.ordinal || c.Records != fr.first-1 || c.Head != hex.EncodeToString(fr.before[:]):
					err = errors.New("it is for another place")
				default:
					err = verify(c.Chain, c.text(), c.Signature, c.Time)
				}
				if err != nil {
					fault("checkpoint after record %d: %v", fr.first-1, err)
				} else {
					p.Checkpoints, p.Signed, p.Last = p.Checkpoints+1, c.Records, c
				}
			}
			last = segmentEnd{fr.chain, fr.first + uint64(fr.records)}
			return nil
		})
		if errors.Is(err, errTorn) {
			p.Torn++
		} else if err != nil {
			fault("%v", err)
		}
		if h != nil {
			if h.ordinal != file.ordinal {
				fault("it is segment %x by its header", h.ordinal)
			}
			if end != nil && (h.prev != end.chain || h.first != end.next) {
				fault("the chain does not go on from the segment before")
			}
			end = &last
			p.Head = hex.EncodeToString(last.chain[:])
		} else {
			end = nil
		}
	}
	p.Whole = len(p.Faults) == 0
	return p, nil
}
