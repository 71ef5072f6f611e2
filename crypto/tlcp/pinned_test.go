package tlcp

import (
	"errors"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// pin returns a PinnedRoot that knows one certificate, and counts its calls.
func pin(root *smx509.Certificate, asked *int) func(*smx509.Certificate) bool {
	return func(c *smx509.Certificate) bool {
		*asked++
		return c.Equal(root)
	}
}

// A client that knows its root by a digest alone is served by a server that
// sends the root, with everything else checked as with RootCAs.
func TestPinnedRoot(t *testing.T) {
	site := newSite(t)
	over := newRoot(t, "another root")
	root, sub := site.root, site.root.intermediate("below")
	edge := func(edit func(*smx509.Certificate)) *Pair { return sub.pair(edit).WithRoot(root.cert) }
	keep := func(*smx509.Certificate) {}
	for _, c := range []struct {
		name string
		pair *Pair
		pin  *smx509.Certificate
		want Alert // 0: it succeeds
	}{
		{"root sent", site.server.WithRoot(root.cert), root.cert, 0},
		{"below an intermediate", edge(keep), root.cert, 0},
		{"the intermediate is pinned", edge(keep), sub.cert, 0},
		{"root not sent", site.server, root.cert, AlertUnknownCA},
		{"another root sent", site.server.WithRoot(over.cert), root.cert, AlertUnknownCA},
		// The pinned root is among them, and has issued nothing of the rest.
		{"root of a stranger's chain", over.pair().WithRoot(root.cert), root.cert, AlertUnknownCA},
		// A leaf is no authority, whatever a digest says.
		{"a leaf is pinned", site.server.WithRoot(root.cert), site.server.encLeaf, AlertUnknownCA},
		{"the first leaf is pinned", site.server.WithRoot(root.cert), site.server.signLeaf, AlertUnknownCA},
		{"another host", edge(hostOnly("other.example.org")), root.cert, AlertBadCertificate},
		{"expired", edge(func(c *smx509.Certificate) { c.NotAfter = testTime.Add(-time.Minute) }), root.cert, AlertCertificateExpired},
	} {
		for _, suite := range []uint16{ECC_SM4_GCM_SM3, ECDHE_SM4_GCM_SM3} {
			mutual := suite == ECDHE_SM4_GCM_SM3
			server, client := site.configs(suite, mutual)
			server.Certificates = []*Pair{c.pair}
			asked := 0
			client.RootCAs, client.PinnedRoot = nil, pin(c.pin, &asked)
			var chain []*smx509.Certificate
			client.VerifyConnection = func(s ConnectionState) error { chain = s.VerifiedChain; return nil }
			_, _, sent, got := handshake(t, "tcp4", server, client)
			if asked == 0 && c.want == 0 {
				t.Errorf("%s, %s: nobody looked at the root", c.name, CipherSuiteName(suite))
			}
			if c.want != 0 {
				judgeBoth(t, c.name, got, sent, c.want)
				continue
			}
			if sent != nil || got != nil {
				t.Errorf("%s, %s: server %v, client %v", c.name, CipherSuiteName(suite), sent, got)
				continue
			}
			if len(chain) == 0 || !chain[len(chain)-1].Equal(c.pin) {
				t.Errorf("%s: verified by %d certificates up to another", c.name, len(chain))
			}
		}
	}
}

// It takes the place of RootCAs: what those would accept is refused.
func TestPinnedRootTakesThePlaceOfRootCAs(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	server.Certificates = []*Pair{site.server.WithRoot(site.root.cert)}
	mustHandshake(t, "tcp4", server, client)
	client.PinnedRoot = func(*smx509.Certificate) bool { return false }
	_, _, sent, got := handshake(t, "tcp4", server, client)
	judgeBoth(t, "nothing is pinned", got, sent, AlertUnknownCA)
}

// The same checks of revocation as with RootCAs.
func TestPinnedRootChecksRevocation(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	server.Certificates = []*Pair{site.server.WithRoot(site.root.cert)}
	asked := 0
	client.RootCAs, client.PinnedRoot = nil, pin(site.root.cert, &asked)
	client.CheckRevocation = func(cert, _ *smx509.Certificate) error {
		if cert.Equal(site.server.encLeaf) {
			return errors.New("revoked")
		}
		return nil
	}
	_, _, sent, got := handshake(t, "tcp4", server, client)
	judgeBoth(t, "revoked", got, sent, AlertCertificateRevoked)
}

// Each contact is a first contact: no session is kept, and none that a client
// with RootCAs left is offered.
func TestPinnedRootDoesNotResume(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	server.Certificates = []*Pair{site.server.WithRoot(site.root.cert)}
	server.SessionCache, client.SessionCache = NewLRUSessionCache(0), NewLRUSessionCache(0)
	mustHandshake(t, "tcp4", server, client)
	if _, c := mustHandshake(t, "tcp4", server, client); !c.ConnectionState().DidResume {
		t.Fatal("a client with RootCAs does not resume: the test would show nothing")
	}
	asked := 0
	client.RootCAs, client.PinnedRoot = nil, pin(site.root.cert, &asked)
	for range 2 {
		before := asked
		_, c := mustHandshake(t, "tcp4", server, client)
		if c.ConnectionState().DidResume || asked == before {
			t.Errorf("resumed %v, the root was looked at %d times", c.ConnectionState().DidResume, asked-before)
		}
	}
}
