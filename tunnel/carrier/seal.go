package carrier

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// Types of messages (docs/tunnel.md §5): the number of the table, or Hello.
const (
	Hello         = 0
	Reply         = 5
	AccessRequest = 12
	AccessReply   = 13
	Renewal       = 14
	Notice        = 15
)

const (
	sealHead     = 1 + 8 + sm4gcm.NonceSize // type, sequence, nonce
	sealOverhead = sealHead + sm4gcm.Overhead
)

// ErrSealed is returned for a sealed message that does not open, or that came
// before. The two are not told apart.
var ErrSealed = errors.New("open sealed message: not accepted")

// Sealer seals and opens the messages of one end of one tunnel with SM4-GCM
// (M73). Its methods may be called from any goroutine.
type Sealer struct {
	key     []byte // the cipher is made anew for a message: idle tunnels are many
	gateway bool

	sealing sync.Mutex
	out     uint64 // guarded by sealing; the last sequence
	opening sync.Mutex
	in      uint64 // guarded by opening; the last sequence that was taken
}

// NewSealer returns the gateway's or the agent's end under a key of 16 bytes
// that is this tunnel's alone.
func NewSealer(key []byte, gateway bool) (*Sealer, error) {
	if _, err := sm4gcm.New(key); err != nil {
		return nil, err
	}
	return &Sealer{key: bytes.Clone(key), gateway: gateway}, nil
}

// Seal seals body as a message of this type and has send put it on its way,
// under a lock, so that messages leave in the order of their sequences. send
// must not block, and copies what it keeps.
func (s *Sealer) Seal(kind byte, body []byte, send func(sealed []byte) error) error {
	aead, err := sm4gcm.New(s.key)
	if err != nil {
		return err
	}
	s.sealing.Lock()
	defer s.sealing.Unlock()
	if s.out == ^uint64(0) {
		return errors.New("seal message: the sequence is used up")
	}
	s.out++
	b := make([]byte, sealHead, sealOverhead+len(body))
	b[0] = kind
	binary.BigEndian.PutUint64(b[1:], s.out)
	if _, err := rand.Read(b[9:sealHead]); err != nil {
		return fmt.Errorf("seal message: %w", err)
	}
	return send(aead.Seal(b, b[9:sealHead], body, additional(b, s.gateway)))
}

// Open returns the type and the body of what the other end sealed. A message
// must follow, by its sequence, the last one that was taken. The error is
// ErrSealed.
func (s *Sealer) Open(raw []byte) (kind byte, body []byte, err error) {
	if len(raw) < sealOverhead {
		return 0, nil, ErrSealed
	}
	aead, err := sm4gcm.New(s.key)
	if err != nil {
		return 0, nil, err
	}
	body, err = aead.Open(nil, raw[9:sealHead], raw[sealHead:], additional(raw, !s.gateway))
	if err != nil {
		return 0, nil, ErrSealed
	}
	seq := binary.BigEndian.Uint64(raw[1:])
	s.opening.Lock()
	defer s.opening.Unlock()
	if seq <= s.in {
		return 0, nil, ErrSealed
	}
	s.in = seq
	return raw[0], body, nil
}

// additional is type, direction, sequence.
func additional(b []byte, gateway bool) []byte {
	var a [10]byte
	a[0] = b[0]
	if gateway {
		a[1] = 1
	}
	copy(a[2:], b[1:9])
	return a[:]
}
