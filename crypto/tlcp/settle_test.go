package tlcp

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// A settled connection works as before and waits without a buffer.
func TestSettledConnection(t *testing.T) {
	server, client := newSite(t).configs(ECDHE_SM4_GCM_SM3, true)
	s, c := mustHandshake(t, "tcp4", server, client)
	if s.ConnectionState().PeerSign == nil {
		t.Fatal("no certificate of the client before Settle")
	}
	s.Settle()
	if st := s.ConnectionState(); st.PeerSign != nil || st.PeerCertificates != nil || st.CipherSuite != ECDHE_SM4_GCM_SM3 {
		t.Errorf("after Settle: %+v", st)
	}
	for _, n := range []int{1, 100, 3000, 100_000, 1_000_000, 10, 10} {
		exchange(t, s, c, n)
	}
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read that nothing comes for: %v", err)
	}
	if s.small != nil || s.large != nil || s.raw != nil {
		t.Errorf("it waited with a buffer of %d bytes", len(s.raw))
	}
	_ = s.SetReadDeadline(time.Time{})
	if s.in.prot.aead == nil || s.out.prot.aead == nil {
		t.Error("the keys are gone while records are frequent")
	}
	s.lull.heard = s.lull.heard.Add(-2 * rare)
	exchange(t, s, c, 10)
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read that nothing comes for: %v", err)
	}
	_ = s.SetReadDeadline(time.Time{})
	if s.in.prot.aead != nil || s.out.prot.aead != nil {
		t.Error("expanded keys are held while records are rare")
	}
	exchange(t, s, c, 10)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the end: %d, %v", n, err)
	}
}

// A settled connection that is cut below tells it from an end.
func TestSettledConnectionCutBelow(t *testing.T) {
	server, client := newSite(t).configs(ECDHE_SM4_GCM_SM3, true)
	s, c := mustHandshake(t, "tcp4", server, client)
	s.Settle()
	exchange(t, s, c, 10)
	if err := c.NetConn().Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil || s.CloseNotified() {
		t.Errorf("a cut: %v, goodbye %v", err, s.CloseNotified())
	}
}
