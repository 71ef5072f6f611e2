package ctlclient

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// clockSlack is how far the clock may stand before the last contact.
const clockSlack = time.Minute

// witnessKey derives the key of the witness from that of the outbox.
func witnessKey(keys *keystore.Store) ([]byte, error) {
	key, err := OutboxKey(keys)()
	if err != nil {
		return nil, err
	}
	sum := sm3.Sum(append([]byte("yumen state witness\n"), key...))
	return sum[:], nil
}

// proveState decides whether the stored lists may be put in force before the
// control center has answered. A folder that may be older than what was in
// force may only take away.
func (g *Gateway) proveState() bool {
	key, err := witnessKey(g.cfg.Keys)
	if err == nil {
		err = g.state.prove(key)
	}
	if at := g.state.lastContact(); err == nil && at.Sub(g.cfg.Now()) > clockSlack {
		err = fmt.Errorf("the clock stands before the last contact with the control center (%s)", at.UTC().Format(time.RFC3339))
	}
	if err == nil {
		return true
	}
	g.log.Error("stored lists are not put in force before the control center answers", zap.Error(err))
	g.reports.own.Raise(alert.Alert{Code: alert.StateUnproved, Detail: err.Error()})
	g.set(func(s *GatewayStatus) { s.Unproved = err.Error() })
	g.state.distrust()
	return false
}

// distrust forgets the stored lists, but not how high their versions were nor
// what they revoked.
func (s *state) distrust() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w = witness{}
	for _, l := range []*storedList{&s.v.Grants, &s.v.Policies} {
		l.File, l.Head, l.Stored, l.Since = "", "", 0, 0
	}
}

// nonce returns a fresh value for Table 4.
func nonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

// errNoEcho means that Table 5 proves nothing about now.
var errNoEcho = fmt.Errorf("%w: its answer to Table 4 does not carry our nonce", ErrDown)

// contact takes Table 5, which must answer our nonce: it was signed after we
// asked. From here on no list is taken that is older than what it names.
func (g *Gateway) contact(asked string, m *envelope.Message) error {
	if textOf(m.Header.Ext[wire.ExtNonce]) != asked {
		return errNoEcho
	}
	for name, key := range map[wire.ListName]string{wire.GrantsList: wire.ExtListVersion, wire.PoliciesList: wire.ExtPolicyVersion} {
		if v, err := strconv.ParseUint(textOf(m.Header.Ext[key]), 10, 64); err == nil {
			g.state.saw(name, v, "")
		}
	}
	now := g.cfg.Now()
	g.set(func(s *GatewayStatus) { s.LastContact = now })
	if err := g.state.contacted(now); err != nil {
		g.log.Warn("contact not stored", zap.Error(err))
	}
	if g.cfg.Contact != nil {
		g.cfg.Contact(now)
	}
	g.differs(m)
	return nil
}

// differs takes the control center's word that what is in force here is not
// what it believes: the lists are fetched whole.
func (g *Gateway) differs(m *envelope.Message) {
	var names []wire.ListName
	if err := json.Unmarshal(m.Header.Ext[wire.ExtDiffers], &names); err != nil {
		return // absent
	}
	found := false
	for _, name := range []wire.ListName{wire.GrantsList, wire.PoliciesList} {
		if slices.Contains(names, name) {
			g.log.Error("control center and gateway differ on what is in force", zap.String("list", string(name)))
			g.reports.own.Raise(alert.Alert{Code: alert.StateDiffers, Detail: string(name)})
			g.pullWhole(name, true)
			found = true
		}
	}
	if found {
		g.set(func(s *GatewayStatus) { s.Differed++ })
		g.Sync()
	}
}

// stateHash returns what is in force for the control center to compare, or nil
// while a change is half applied.
func (g *Gateway) stateHash() jsontext.Value {
	g.mu.Lock()
	half := g.half
	g.mu.Unlock()
	if half || g.cfg.StateHash == nil {
		return nil
	}
	return ext(g.cfg.StateHash())
}

func textOf(raw jsontext.Value) string {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return ""
	}
	return s
}

// storedFile reads a stored list without holding it whole.
type storedFile struct {
	f     *os.File
	first []byte // the manifest's line
	in    io.Reader
}

// open opens a stored list, if its manifest is the one that was stored: that
// vouches for every page.
func (s *state) open(l storedList) (*storedFile, error) {
	f, err := os.Open(filepath.Join(s.dir, filepath.Base(l.File)))
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(f, wire.MaxMessage+1)
	first, err := in.Peek(wire.MaxMessage + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, err
	}
	line, _, _ := bytes.Cut(first, []byte{'\n'})
	if hexSum(line) != l.Head {
		f.Close()
		return nil, errAltered
	}
	return &storedFile{f, bytes.Clone(line), in}, nil
}

func (s *storedFile) Read(p []byte) (int, error) { return s.in.Read(p) }
