package agent

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crypto/ecdsa"
)

const stateName = "state.json"

// markName is the file of the key folder that says that a state was begun with
// the keys of this enrolment. It lies apart from the state, so that who removes
// the state does not get a new one that pins whatever roots lie there now. New
// keys make an old mark worthless.
const markName = "state-begun"

// trustFiles are the files of the key folder that say whom this agent trusts.
// The state pins them: one that is exchanged alters the state (M28).
var trustFiles = []string{"tls-root.crt", "tlcp-root.crt", "message-root.crt", "list-root.crt", "control-sign.crt", "control-enc.crt"}

// AlteredError says that important data on this machine was changed from
// outside (§6.2, M28). The agent does not work with it.
type AlteredError struct {
	What string
	Gone bool // it was removed
}

// Error says what was altered and what to do.
func (e *AlteredError) Error() string {
	how := "altered"
	if e.Gone {
		how = "removed"
	}
	return "check agent state: " + e.What + " was " + how + " from outside (look for the cause; to start anew, remove the key folder and the state folder, ask for a code of yumen control device code, and run yumen enroll with it)"
}

// StateKey signs the state file, and checks it, with a key that leaves the
// machine as little as the agent's identity does.
type StateKey interface {
	Sign(body []byte) ([]byte, error)
	Verify(body, sig []byte) bool
}

// smKey is a [StateKey] over an SM2 private key. It verifies with the public
// half of that private key, not with a certificate that lies beside the state.
type smKey struct{ signer crypto.Signer }

// NewStateKey returns a [StateKey] over an SM2 signer.
func NewStateKey(s crypto.Signer) (StateKey, error) {
	if p, ok := s.Public().(*ecdsa.PublicKey); !ok || !sm2.IsSM2PublicKey(p) {
		return nil, errors.New("open agent state: the signing key is not SM2")
	}
	return smKey{s}, nil
}

// stateDomain keeps a signature of a state from being one of a message.
const stateDomain = "yumen-agent-state-v1\n"

// Sign returns the SM2-with-SM3 signature of body.
func (k smKey) Sign(body []byte) ([]byte, error) {
	return k.signer.Sign(rand.Reader, append([]byte(stateDomain), body...), sm2.NewSM2SignerOption(true, nil))
}

// Verify reports whether sig is k's signature of body.
func (k smKey) Verify(body, sig []byte) bool {
	p, ok := k.signer.Public().(*ecdsa.PublicKey)
	return ok && sm2.VerifyASN1WithSM2(p, nil, append([]byte(stateDomain), body...), sig)
}

// stateBody is what an agent keeps between runs: no token, no password.
type stateBody struct {
	Version  int               `json:"version"`
	AgentID  string            `json:"agentId"`
	DeviceID string            `json:"deviceId"`
	UserID   string            `json:"userId,omitempty"` // who signed in last
	Trust    map[string]string `json:"trust"`            // file → SM3, hexadecimal; "" when there is none
}

type signedState struct {
	Body      jsontext.Value `json:"body"`
	Signature []byte         `json:"signature"`
}

// state is the state file. It is safe for concurrent use.
type state struct {
	dir, keys string
	key       StateKey

	mu   sync.Mutex
	body stateBody // guarded by mu
	raw  []byte    // guarded by mu; the file as it was last written or verified
}

// openState verifies the state in dir, or begins one when there is none.
// Everything that does not verify is an [*AlteredError].
func openState(dir, keys string, id Identity, key StateKey) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	if fi, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("open state folder: %w", err)
	} else if runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open state folder %s: others may enter it (run chmod 700 %s)", dir, dir)
	}
	s := &state{dir: dir, keys: keys, key: key}
	trust, err := s.trust()
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, stateName))
	begun, err2 := s.begun(id)
	switch {
	case err2 != nil:
		return nil, err2
	case errors.Is(err, fs.ErrNotExist) && begun:
		return nil, &AlteredError{What: stateName, Gone: true}
	case errors.Is(err, fs.ErrNotExist):
		s.body = stateBody{Version: 1, AgentID: id.AgentID, DeviceID: id.DeviceID, Trust: trust}
		if err := s.write(); err != nil {
			return nil, err
		}
		return s, s.mark(id)
	case err != nil:
		return nil, fmt.Errorf("read agent state: %w", err)
	}
	body, err := s.verify(raw)
	if err != nil {
		return nil, err
	}
	if body.AgentID != id.AgentID || body.DeviceID != id.DeviceID {
		return nil, &AlteredError{What: "the identity in " + stateName}
	}
	s.body, s.raw = *body, raw
	if err := s.compareTrust(trust); err != nil {
		return nil, err
	}
	if !begun {
		return s, s.mark(id)
	}
	return s, nil
}

func markBody(id Identity) []byte { return []byte("begun " + id.AgentID + " " + id.DeviceID) }

// begun reports whether a state was begun with these keys.
func (s *state) begun(id Identity) (bool, error) {
	sig, err := os.ReadFile(filepath.Join(s.keys, markName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read mark of the agent state: %w", err)
	}
	return s.key.Verify(markBody(id), sig), nil
}

// mark notes that a state was begun with these keys.
func (s *state) mark(id Identity) error {
	sig, err := s.key.Sign(markBody(id))
	if err == nil {
		err = replaceFile(filepath.Join(s.keys, markName), sig)
	}
	if err != nil {
		return fmt.Errorf("mark that the agent state was begun: %w (the key folder must be writable for the agent)", err)
	}
	return nil
}

func (s *state) verify(raw []byte) (*stateBody, error) {
	altered := &AlteredError{What: stateName}
	if len(raw) > 64<<10 {
		return nil, altered
	}
	var f signedState
	if err := json.Unmarshal(raw, &f, json.RejectUnknownMembers(true)); err != nil || !s.key.Verify(f.Body, f.Signature) {
		return nil, altered
	}
	var b stateBody
	if err := json.Unmarshal(f.Body, &b); err != nil || b.Version != 1 {
		return nil, altered
	}
	return &b, nil
}

func (s *state) compareTrust(now map[string]string) error {
	for _, name := range trustFiles {
		if s.body.Trust[name] != now[name] {
			return &AlteredError{What: name}
		}
	}
	return nil
}

// trust returns the digests of the files that say whom we trust.
func (s *state) trust() (map[string]string, error) {
	m := map[string]string{}
	for _, name := range trustFiles {
		b, err := os.ReadFile(filepath.Join(s.keys, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read trust file: %w", err)
		default:
			h := sm3.Sum(b)
			m[name] = hex.EncodeToString(h[:])
		}
	}
	return m, nil
}

// check compares the files with what this process wrote or verified last.
func (s *state) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, err := os.ReadFile(filepath.Join(s.dir, stateName))
	if gone := errors.Is(err, fs.ErrNotExist); gone || err == nil && !bytes.Equal(raw, s.raw) {
		return &AlteredError{What: stateName, Gone: gone}
	}
	if err != nil {
		return fmt.Errorf("read agent state: %w", err)
	}
	now, err := s.trust()
	if err != nil {
		return err
	}
	return s.compareTrust(now)
}

// setUser notes who signed in. A state that was altered meanwhile is not
// written over: check must find it.
func (s *state) setUser(userID string) error {
	if err := s.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body.UserID == userID {
		return nil
	}
	s.body.UserID = userID
	return s.write()
}

func (s *state) user() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.UserID
}

// write replaces the file: beside it, synced, renamed. s.mu must be held once
// s is shared.
func (s *state) write() error {
	body, err := json.Marshal(&s.body, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("write agent state: %w", err)
	}
	sig, err := s.key.Sign(body)
	if err != nil {
		return fmt.Errorf("sign agent state: %w", err)
	}
	raw, err := json.Marshal(&signedState{Body: body, Signature: sig})
	if err != nil {
		return fmt.Errorf("write agent state: %w", err)
	}
	if err := replaceFile(filepath.Join(s.dir, stateName), raw); err != nil {
		return fmt.Errorf("write agent state: %w", err)
	}
	s.raw = raw
	return nil
}

func replaceFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
