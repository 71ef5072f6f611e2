package envelope

import (
	"os"
	"testing"

	"github.com/emmansun/gmsm/smx509"
)

var testDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "envelope")
	if err != nil {
		panic(err)
	}
	testDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func TestSealOpen(t *testing.T) {
	s := testSite(t)
	for _, c := range []struct {
		name string
		to   *smx509.Certificate
	}{{"plain", nil}, {"sealed", s.control.enc}} {
		t.Run(c.name, func(t *testing.T) {
			raw := mustSeal(t, s.gw.sender(), statusHeader, statusBody, c.to)
			m, err := s.control.receiver(t, s.gw, nil).Open(raw, "T10")
			if err != nil {
				t.Fatalf("open: %v: %v", err, err.(*RejectedError).Unwrap())
			}
			want, _ := canonical([]byte(statusBody))
			if string(m.Body) != string(want) {
				t.Errorf("body: got %s, want %s", m.Body, want)
			}
			if m.Header.Sender != "GW000000001" || m.Header.KeyID != KeyID(s.gw.sign) || !m.Signer.Equal(s.gw.sign) {
				t.Errorf("header: got %+v", m.Header)
			}
		})
	}
}
