package testbed

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/wire"
)

// Signer signs lists.
type Signer struct {
	sender envelope.Sender
	chain  jsontext.Value
}

func newSigner(ks *keystore.Store, id string) (*Signer, error) {
	key, err := ks.Signer(keystore.List)
	if err != nil {
		return nil, err
	}
	chain, err := ks.Chain(keystore.List)
	if err != nil {
		return nil, err
	}
	return &Signer{envelope.Sender{ID: id, Key: key, Cert: chain[0]}, envelope.SignerExt(chain)}, nil
}

// Impostor returns a signer with the right names under an authority of its own.
func (l *Lone) Impostor() *Signer {
	l.o.Helper()
	ca, err := lab.New(lab.Config{Name: "Yumen test", Iterations: iterations})
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	ks, err := ca.Party(filepath.Join(l.Dir, "impostor"+randomText(4)), []byte(randomText(16)), certid.Identity{Control: loneControl}, nil)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	s, err := newSigner(ks, loneControl)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	return s
}

// Grant is a row of Table 7, as it is put on the wire: no rule of ours stands
// between the test and the gateway.
type Grant map[string]any

// NewGrant returns a right row that counts for an hour.
func NewGrant(user, device, token string, apps ...string) Grant {
	return Grant{"userId": user, "deviceId": device, "authenticationToken": token,
		"expirationDate": wire.FormatTime(time.Now().Add(time.Hour)), "appIdList": apps}
}

// With returns the row with another value in one field.
func (g Grant) With(field string, value any) Grant {
	out := Grant{}
	for k, v := range g {
		out[k] = v
	}
	out[field] = value
	return out
}

// Policy is a row of Table 9.
type Policy map[string]any

// NewPolicy returns a row.
func NewPolicy(id, kind, text string) Policy {
	return Policy{"policyId": id, "policyName": id, "policyType": kind, "policyData": text}
}

// List is a list before it is signed.
type List struct {
	Signer   *Signer
	Gateway  string // receiver, and gatewayId of the pages
	Version  uint64
	NotAfter time.Time
	Grants   []Grant
	Policies []Policy
	kind     wire.ListName
	to       *smx509.Certificate
}

// Grants returns a right access grant list.
func (l *Lone) Grants(version uint64, rows ...Grant) List {
	return l.list(wire.GrantsList, version, rows, nil)
}

// Policies returns a right policy list.
func (l *Lone) Policies(version uint64, rows ...Policy) List {
	return l.list(wire.PoliciesList, version, nil, rows)
}

func (l *Lone) list(kind wire.ListName, version uint64, grants []Grant, policies []Policy) List {
	l.o.Helper()
	chain, err := l.Keys.Chain(keystore.Enc)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	return List{l.Signer, LoneGateway, version, time.Now().Add(time.Hour), grants, policies, kind, chain[0]}
}

// ForAnother makes the list one for another gateway of the same authority.
func (l *Lone) ForAnother(list *List) {
	l.o.Helper()
	list.Gateway = "GW000000002"
	chain, err := l.Party(certid.Identity{Gateway: list.Gateway, Device: "DEV00000002"}).Chain(keystore.Enc)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	list.to = chain[0]
}

// PutGrants writes the list file; the gateway reads it at its next reload.
func (l *Lone) PutGrants(list List) { l.o.Helper(); l.put("grants.list", list) }

// PutPolicies writes the list file.
func (l *Lone) PutPolicies(list List) { l.o.Helper(); l.put("policies.list", list) }

func (l *Lone) put(name string, list List) {
	l.o.Helper()
	raw, err := list.sign()
	if err == nil {
		err = os.WriteFile(filepath.Join(l.Dir, "gateway", name), raw, 0o600)
	}
	if err != nil {
		l.o.Fatalf("make list file: %v", err)
	}
}

// sign returns the lines of the list.
func (l *List) sign() ([]byte, error) {
	m := wire.Manifest{List: l.kind, Version: l.Version, NotAfter: wire.FormatTime(l.NotAfter), Receiver: l.Gateway,
		Rows: len(l.Grants) + len(l.Policies), Pages: []wire.ManifestPage{}}
	var lines [][]byte
	if m.Rows > 0 {
		page := map[string]any{"gatewayId": l.Gateway, "deviceId": LoneDevice, "timestamp": wire.FormatTime(time.Now())}
		table := "T6"
		if l.kind == wire.GrantsList {
			page["keyType"], page["data"] = "SM2-SM4", l.Grants
		} else {
			table, page["policyList"] = "T8", l.Policies
		}
		body, err := json.Marshal(page)
		if err != nil {
			return nil, err
		}
		line, err := l.Signer.seal(table, l.Gateway, body, l.to)
		if err != nil {
			return nil, err
		}
		m.Pages = append(m.Pages, wire.ManifestPage{SM3: wire.PageHash(line), Bytes: len(line)})
		lines = append(lines, line)
	}
	body, err := wire.EncodeExtension(&m)
	if err != nil {
		return nil, err
	}
	head, err := l.Signer.seal(wire.TypeManifest, l.Gateway, body, nil)
	if err != nil {
		return nil, err
	}
	return append(bytes.Join(append([][]byte{head}, lines...), []byte("\n")), '\n'), nil
}

func (s *Signer) seal(kind, receiver string, body []byte, to *smx509.Certificate) ([]byte, error) {
	return s.sender.Seal(envelope.Header{MsgType: kind, Receiver: receiver, Ext: map[string]jsontext.Value{wire.ExtSigner: s.chain}}, body, to)
}
