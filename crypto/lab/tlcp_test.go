package lab

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// shake connects the party client to the party server by TLCP, mutually, and
// returns what the server knows of the client.
func shake(t *testing.T, server, client *keystore.Store, host string) (id certid.Identity, err error) {
	t.Helper()
	config := func(s *keystore.Store) *tlcp.Config {
		pair, err1 := s.TLCPPair()
		roots, err2 := s.Root(keystore.TLCPRoot)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return &tlcp.Config{
			Certificates: []*tlcp.Pair{pair}, RootCAs: roots, ClientCAs: roots, ClientAuth: tlcp.RequireAndVerifyClientCert, ServerName: host,
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	sc := config(server)
	sc.VerifyConnection = func(cs tlcp.ConnectionState) (err error) {
		id, err = certid.OfPair(cs.PeerSign, cs.PeerEnc)
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := tlcp.Server(a, sc).HandshakeContext(ctx)
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	err = tlcp.Client(b, config(client)).HandshakeContext(ctx)
	if err != nil {
		b.Close()
	}
	return id, errors.Join(err, <-done)
}

func TestTLCPBetweenTwoParties(t *testing.T) {
	ca := newCA(t, Config{})
	gw, ag := mustParty(t, ca, gateway, gwHosts), mustParty(t, ca, agent, nil)
	for _, host := range gwHosts {
		if id, err := shake(t, gw, ag, host); err != nil || id != agent {
			t.Errorf("%s: the server knows %+v, %v", host, id, err)
		}
	}
	if _, err := shake(t, gw, ag, "other.example.org"); err == nil {
		t.Error("the certificate is good for another host")
	}
	stranger := mustParty(t, newCA(t, Config{}), agent, nil)
	if _, err := shake(t, gw, stranger, "gw.example.org"); err == nil {
		t.Error("a party of another authority got in")
	}
}

// What is wrong with a pair is said when it is loaded, by the file's name.
func TestTLCPPairRefusesWhatIsNone(t *testing.T) {
	ca := newCA(t, Config{})
	other := mustParty(t, ca, agent, nil)
	copyFile := func(t *testing.T, from, to string) {
		t.Helper()
		raw, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"swapped": {func(t *testing.T, dir string) {
			for _, ext := range []string{".crt", ".key"} {
				a, b := filepath.Join(dir, keystore.TLCPSign+ext), filepath.Join(dir, keystore.TLCPEnc+ext)
				copyFile(t, a, a+".tmp")
				copyFile(t, b, a)
				copyFile(t, a+".tmp", b)
			}
		}, "exchange them"},
		"certificates swapped": {func(t *testing.T, dir string) {
			a, b := filepath.Join(dir, "tlcp-sign.crt"), filepath.Join(dir, "tlcp-enc.crt")
			copyFile(t, a, a+".tmp")
			copyFile(t, b, a)
			copyFile(t, a+".tmp", b)
		}, "tlcp-sign: the certificate is for another key"},
		"of two parties": {func(t *testing.T, dir string) {
			for _, ext := range []string{".crt", ".key"} {
				copyFile(t, filepath.Join(other.Dir(), keystore.TLCPEnc+ext), filepath.Join(dir, keystore.TLCPEnc+ext))
			}
		}, `of "GW000000001", the encryption certificate of "AGT00000001"`},
		"one missing": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "tlcp-enc.crt")); err != nil {
				t.Fatal(err)
			}
		}, "tlcp-enc.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := mustParty(t, ca, gateway, nil).Dir()
			c.spoil(t, dir)
			s, err := keystore.Open(dir, pass)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.TLCPPair()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if name == "one missing" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v, want fs.ErrNotExist", err)
			}
		})
	}
}

// A web server's pair speaks for nobody, but proves its hosts.
func TestTLCPWebPair(t *testing.T) {
	ca := newCA(t, Config{})
	s := mustParty(t, ca, gateway, nil)
	csr := func(name string) []byte {
		der, err := s.CSR(name, certid.Identity{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	sign, enc, err := ca.IssueTLCPWeb(csr(keystore.TLCPSign), csr(keystore.TLCPEnc), Options{Hosts: []string{"wiki.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := s.Root(keystore.TLCPRoot)
	if err != nil {
		t.Fatal(err)
	}
	for i, pem := range [][]byte{sign, enc} {
		chain, err := keystore.ParseChain(pem)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := chain[0].Verify(smx509.VerifyOptions{Roots: roots, DNSName: "wiki.example.org"}); err != nil {
			t.Errorf("certificate %d: %v", i, err)
		}
		if _, err := certid.OfSM(chain[0]); !errors.Is(err, certid.ErrNone) {
			t.Errorf("certificate %d: identity %v", i, err)
		}
	}
	if _, _, err := ca.IssueTLCPWeb(csr(keystore.TLCPSign), csr(keystore.TLCPEnc), Options{}); err == nil {
		t.Error("a pair for no host")
	}
}
