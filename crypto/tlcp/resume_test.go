package tlcp

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// resumption makes a session by one handshake, lets change change the
// configurations, and reports whether the next handshake resumed. Both sides
// must say the same, and the connection must work either way.
func resumption(t *testing.T, server, client *Config, change func(server, client *Config) (*Config, *Config)) bool {
	t.Helper()
	s, c := mustHandshake(t, "tcp4", server, client)
	exchange(t, s, c, 100)
	if s.ConnectionState().DidResume || c.ConnectionState().DidResume {
		t.Fatal("the first handshake was resumed")
	}
	s.Close()
	c.Close()
	server, client = change(server.Clone(), client.Clone())
	s, c = mustHandshake(t, "tcp4", server, client)
	exchange(t, s, c, 100)
	got := s.ConnectionState().DidResume
	if c.ConnectionState().DidResume != got {
		t.Errorf("the server resumed: %v, the client: %v", got, !got)
	}
	if got && (s.ConnectionState().PeerSign == nil) != (server.ClientAuth == NoClientCert) {
		t.Error("the resumed connection has another peer than the first")
	}
	s.Close()
	c.Close()
	return got
}

func TestWhatIsNotResumed(t *testing.T) {
	site := newSite(t)
	later := func(d time.Duration) func() time.Time { return func() time.Time { return testTime.Add(d) } }
	type change = func(s, c *Config) (*Config, *Config)
	for _, c := range []struct {
		name   string
		change change
		want   bool
	}{
		{"nothing changed", func(s, c *Config) (*Config, *Config) { return s, c }, true},
		{"within its life", func(s, c *Config) (*Config, *Config) {
			s.Time, c.Time = later(59*time.Minute), later(59*time.Minute)
			return s, c
		}, true},
		{"the server finds it too old", func(s, c *Config) (*Config, *Config) {
			s.Time = later(61 * time.Minute)
			return s, c
		}, false},
		{"the client finds it too old", func(s, c *Config) (*Config, *Config) {
			c.Time = later(61 * time.Minute)
			return s, c
		}, false},
		{"from the future", func(s, c *Config) (*Config, *Config) {
			s.Time = later(-10 * time.Minute)
			return s, c
		}, false},
		{"a shorter life is configured", func(s, c *Config) (*Config, *Config) {
			s.SessionLifetime = time.Minute
			s.Time = later(2 * time.Minute)
			return s, c
		}, false},
		{"another suite", func(s, c *Config) (*Config, *Config) {
			s.CipherSuites, c.CipherSuites = []uint16{ECC_SM4_CBC_SM3}, []uint16{ECC_SM4_CBC_SM3}
			return s, c
		}, false},
		{"the server has dropped the suite", func(s, c *Config) (*Config, *Config) {
			s.CipherSuites, c.CipherSuites = []uint16{ECC_SM4_CBC_SM3}, nil
			return s, c
		}, false},
		{"other authorities of the client, the same inside", func(s, c *Config) (*Config, *Config) {
			s.ClientCAs = site.root.pool()
			return s, c
		}, true},
		{"the client's authority is gone", func(s, c *Config) (*Config, *Config) {
			s.ClientCAs = newRoot(t, "other").pool()
			s.ClientCAs.AddCert(site.client.signLeaf) // that the full handshake succeeds
			s.ClientCAs.AddCert(site.client.encLeaf)
			return s, c
		}, true},
		{"the server's authority is gone", func(s, c *Config) (*Config, *Config) {
			c.RootCAs = newRoot(t, "other").pool()
			c.RootCAs.AddCert(site.server.signLeaf)
			c.RootCAs.AddCert(site.server.encLeaf)
			return s, c
		}, true},
		{"client certificates are not asked for any more", func(s, c *Config) (*Config, *Config) {
			s.ClientAuth = NoClientCert
			return s, c
		}, false},
		{"the server forgot it", func(s, c *Config) (*Config, *Config) {
			s.SessionCache = NewLRUSessionCache(1)
			s.TicketKeys = [][]byte{bytes.Repeat([]byte{9}, 16)}
			return s, c
		}, false},
		{"the client forgot it", func(s, c *Config) (*Config, *Config) {
			c.SessionCache = NewLRUSessionCache(1)
			return s, c
		}, false},
		{"the server has stopped to resume", func(s, c *Config) (*Config, *Config) {
			s.SessionCache, s.TicketKeys = nil, nil
			return s, c
		}, false},
		{"no host name on the wire", func(s, c *Config) (*Config, *Config) {
			c.ServerName = "127.0.0.1"
			c.SessionCache.Put("127.0.0.1", c.SessionCache.Get("gw.example.org"))
			return s, c
		}, false},
	} {
		for _, kind := range []string{"id", "ticket"} {
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				server, client := site.configs(ECC_SM4_GCM_SM3, true)
				withSessions(server, client, kind)
				if got := resumption(t, server, client, c.change); got != c.want {
					t.Errorf("resumed %v, want %v", got, c.want)
				}
			})
		}
	}
}

func withSessions(server, client *Config, kind string) {
	client.SessionCache = NewLRUSessionCache(4)
	if kind == "id" {
		server.SessionCache = NewLRUSessionCache(4)
		return
	}
	server.TicketKeys, client.OfferTickets = [][]byte{bytes.Repeat([]byte{1}, 16)}, true
}

// TestRevokedSessionIsNotResumed: what is revoked, has expired or lost its
// authority since the full handshake is refused, not resumed.
func TestRevokedSessionIsNotResumed(t *testing.T) {
	site := newSite(t)
	no := errors.New("revoked")
	refuse := func(bad *Pair) func(cert, _ *smx509.Certificate) error {
		return func(cert, _ *smx509.Certificate) error {
			if cert.Equal(bad.signLeaf) {
				return no
			}
			return nil
		}
	}
	for _, kind := range []string{"id", "ticket"} {
		for name, c := range map[string]struct {
			change   func(s, c *Config)
			byServer bool
			want     Alert
		}{
			"client revoked":        {func(s, c *Config) { s.CheckRevocation = refuse(site.client) }, true, AlertCertificateRevoked},
			"client without a root": {func(s, c *Config) { s.ClientCAs = newRoot(t, "other").pool() }, true, AlertUnknownCA},
			"client expired": {func(s, c *Config) {
				s.Time = func() time.Time { return testTime.Add(2000 * time.Hour) }
				s.SessionLifetime = 1e4 * time.Hour
			}, true, AlertCertificateExpired},
			"client refused by hook": {func(s, c *Config) { s.VerifyConnection = func(ConnectionState) error { return no } }, true, AlertBadCertificate},
			"server revoked":         {func(s, c *Config) { c.CheckRevocation = refuse(site.server) }, false, AlertCertificateRevoked},
			"server without a root":  {func(s, c *Config) { c.RootCAs = newRoot(t, "other").pool() }, false, AlertUnknownCA},
			"server of another name": {func(s, c *Config) { rename(c, "other.example.org") }, false, AlertBadCertificate},
			"server refused by hook": {func(s, c *Config) { c.VerifyConnection = func(ConnectionState) error { return no } }, false, AlertBadCertificate},
			"server expired meantime": {func(s, c *Config) {
				c.Time = func() time.Time { return testTime.Add(2000 * time.Hour) }
				c.SessionLifetime = 1e4 * time.Hour
			}, false, AlertCertificateExpired},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				server, client := site.configs(ECC_SM4_GCM_SM3, true)
				withSessions(server, client, kind)
				s, k := mustHandshake(t, "tcp4", server, client)
				s.Close()
				k.Close()
				server, client = server.Clone(), client.Clone()
				c.change(server, client)
				_, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
				if !c.byServer {
					serverErr, clientErr = clientErr, serverErr
				}
				judge(t, certificateCase{name, nil, c.want, 0}, false, serverErr, clientErr)
			})
		}
	}
}

// rename makes a client expect another name, with the session of the first.
func rename(c *Config, name string) {
	c.SessionCache.Put(name, c.SessionCache.Get(c.ServerName))
	c.ServerName = name
}

func TestTicketKeysRotate(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	withSessions(server, client, "ticket")
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 16) }
	for i, step := range []struct {
		keys [][]byte
		want bool
	}{
		{[][]byte{key(1)}, false},
		{[][]byte{key(1)}, true},
		{[][]byte{key(2), key(1)}, true},  // moves the session to key 2
		{[][]byte{key(3), key(2)}, true},  // and to key 3
		{[][]byte{key(4), key(1)}, false}, // unknown: full handshake, new ticket
		{[][]byte{key(4)}, true},
	} {
		server = server.Clone()
		server.TicketKeys = step.keys
		s, c := mustHandshake(t, "tcp4", server, client)
		if got := s.ConnectionState().DidResume; got != step.want || c.ConnectionState().DidResume != got {
			t.Errorf("step %d: resumed %v, want %v", i, got, step.want)
		}
		s.Close()
		c.Close()
	}
}

func TestSpoiledTicketsAreNotOpened(t *testing.T) {
	site := newSite(t)
	c := &Config{TicketKeys: [][]byte{bytes.Repeat([]byte{1}, 16)}, Time: testClock}
	p, err := readPeer(site.client.message, false)
	if err != nil {
		t.Fatal(err)
	}
	want := &Session{suite: ECC_SM4_GCM_SM3, master: bytes.Repeat([]byte{5}, 48), created: testTime, serverName: "a", alpn: "h2", peer: p}
	ticket, err := c.sealTicket(want)
	if err != nil {
		t.Fatal(err)
	}
	got, fresh := c.openTicket(ticket)
	if got == nil || !fresh || !bytes.Equal(got.master, want.master) || got.serverName != "a" || !got.peer.sign.Equal(p.sign) || !got.created.Equal(testTime) {
		t.Fatalf("the ticket itself: %+v, %v", got, fresh)
	}
	for i := range ticket {
		bad := bytes.Clone(ticket)
		bad[i] ^= 0x10
		if s, _ := c.openTicket(bad); s != nil {
			t.Fatalf("byte %d spoiled: opened", i)
		}
		if s, _ := c.openTicket(ticket[:i]); s != nil {
			t.Fatalf("cut to %d bytes: opened", i)
		}
	}
}

func TestSessionCacheIsBounded(t *testing.T) {
	c := NewLRUSessionCache(3)
	s := new(Session)
	for i := range 10 {
		c.Put(fmt.Sprint(i), s)
		c.Get("0") // used all the time
		if i == 0 {
			continue
		}
		if n := c.(*lruCache).order.Len(); n > 3 || n != len(c.(*lruCache).byKey) {
			t.Fatalf("%d sessions", n)
		}
	}
	for key, want := range map[string]bool{"0": true, "9": true, "8": true, "7": false, "1": false} {
		if got := c.Get(key) != nil; got != want {
			t.Errorf("%s: kept %v, want %v", key, got, want)
		}
	}
	c.Put("0", nil)
	if c.Get("0") != nil {
		t.Error("a forgotten session came back")
	}
}

// TestManyClientsResumeAtOnce shares one session cache and one session between
// goroutines; the race detector looks on.
func TestManyClientsResumeAtOnce(t *testing.T) {
	site := newSite(t)
	for _, kind := range []string{"id", "ticket"} {
		server, client := site.configs(ECDHE_SM4_GCM_SM3, true)
		withSessions(server, client, kind)
		s, c := mustHandshake(t, "tcp4", server, client)
		s.Close()
		c.Close()
		server = server.Clone()
		server.ClientCAs = site.root.pool() // verify anew, on shared sessions
		var wg sync.WaitGroup
		for range 8 {
			a, b := socketPair(t, "tcp4")
			s, c := Server(a, server), Client(b, client)
			wg.Go(func() {
				if err := s.Handshake(); err != nil || !s.ConnectionState().DidResume {
					t.Errorf("%s: %v, resumed %v", kind, err, s.ConnectionState().DidResume)
				}
			})
			wg.Go(func() {
				if err := c.Handshake(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}
