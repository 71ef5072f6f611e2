package profile

import "testing"

func TestProfiles(t *testing.T) {
	for p, want := range map[Profile]struct {
		name      string
		tls, tlcp bool
	}{
		"": {"mixed", true, true}, Mixed: {"mixed", true, true}, GM: {"gm", false, true}, Intl: {"intl", true, false},
	} {
		if p.Check() != nil || p.String() != want.name || p.TLS() != want.tls || p.TLCP() != want.tlcp {
			t.Errorf("%q: %v, %s, TLS %v, TLCP %v", string(p), p.Check(), p, p.TLS(), p.TLCP())
		}
	}
	if Profile("GM").Check() == nil {
		t.Error("GM in capitals is taken")
	}
}
