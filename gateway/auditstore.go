package gateway

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	osuser "os/user"
	"slices"
	"strconv"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
)

// AuditConfig is the audit store.
type AuditConfig struct {
	Format     string        `yaml:"format"`      // sealed (default): a folder that only this gateway's keys open; lines: JSON in a file
	Dir        string        `yaml:"dir"`         // sealed: the folder; default state_dir/audit
	KeepFor    time.Duration `yaml:"keep_for"`    // sealed: age at which records go; default 4320h, 180 days
	TotalBytes int64         `yaml:"total_bytes"` // sealed: beyond it the oldest go before their time; default 0: no bound
	Rights     AuditRights   `yaml:"rights"`      // sealed: who may do what by the verbs
	File       string        `yaml:"file"`        // lines: the file; default state_dir/audit.jsonl
	Keep       int           `yaml:"keep"`        // lines: rotated files; default 16
	MaxBytes   int64         `yaml:"max_bytes"`   // of one file before the next begins; default 64 MiB
	Send       string        `yaml:"send"`        // to the control center, through the outbox: off (default), ends (all but allowed requests), all
}

// AuditRights names the local users who may use the verbs of `yumen audit`
// (§6.4: rights to create, read, change and delete records). Nobody may change
// a record. Who has no right is refused, and that is a record, too.
type AuditRights struct {
	Socket string   `yaml:"socket"` // for users other than the gateway's and root; default: none, the admin socket alone
	Read   []string `yaml:"read"`   // show and verify; default: the gateway's user and root
	Export []string `yaml:"export"` // default: the gateway's user and root
	Delete []string `yaml:"delete"` // before their time; default: nobody
}

func (c *AuditConfig) sealed() bool { return c.Format != "lines" }

// faults names what is wrong with c.
func (c *AuditConfig) faults(fault func(path, format string, args ...any)) {
	if c.Format != "" && c.Format != "sealed" && c.Format != "lines" {
		fault("audit.format", "%q is neither sealed nor lines", c.Format)
	}
	if c.MaxBytes < 0 {
		fault("audit.max_bytes", "negative")
	}
	if c.Keep < 0 {
		fault("audit.keep", "negative")
	}
	if c.KeepFor != 0 && c.KeepFor < 24*time.Hour {
		fault("audit.keep_for", "%v is less than a day", c.KeepFor)
	}
	if c.TotalBytes < 0 || c.TotalBytes > 0 && c.TotalBytes < 4*max(c.MaxBytes, 64<<20) && c.MaxBytes == 0 {
		fault("audit.total_bytes", "%d is less than four files of 64 MiB (set max_bytes, too, or 0 for no bound)", c.TotalBytes)
	}
	for path, names := range map[string][]string{"audit.rights.read": c.Rights.Read, "audit.rights.export": c.Rights.Export, "audit.rights.delete": c.Rights.Delete} {
		for _, n := range names {
			if _, err := uidOf(n); err != nil {
				fault(path, "%w", err)
			}
		}
	}
}

// uidOf returns the user id of a name or number.
func uidOf(name string) (string, error) {
	if _, err := strconv.ParseUint(name, 10, 32); err == nil {
		return name, nil
	}
	u, err := osuser.Lookup(name)
	if err != nil {
		return "", fmt.Errorf("%q is no user of this host", name)
	}
	return u.Uid, nil
}

// auditSealing returns what the sealed store needs. Its key hangs on the
// private key that the outbox hangs on, so certificates may be renewed;
// checkpoints are signed by the gateway's message key.
func auditSealing(keys *keystore.Store, c *AuditConfig, sign func() *keystore.Store) (*audit.Sealing, error) {
	key, err := ctlclient.OutboxKey(keys)()
	if err != nil {
		return nil, fmt.Errorf("open audit store: %w (let the gateway write its key folder once, or set audit.format: lines)", err)
	}
	sum := sm3.Sum(append([]byte("yumen audit store v1\n"), key...))
	return &audit.Sealing{
		Dir: c.Dir, Key: sum[:], Seal: sm4gcm.New, KeepFor: c.KeepFor, Total: c.TotalBytes,
		Sign: func(text []byte) ([]byte, [][]byte, error) { return signCheckpoint(sign(), text) },
	}, nil
}

func signCheckpoint(keys *keystore.Store, text []byte) ([]byte, [][]byte, error) {
	signer, err := keys.Signer(keystore.Sign)
	if err != nil {
		return nil, nil, err
	}
	certs, err := keys.Chain(keystore.Sign)
	if err != nil {
		return nil, nil, err
	}
	sig, err := signer.Sign(rand.Reader, text, sm2.DefaultSM2SignerOpts)
	var chain [][]byte
	for _, c := range certs {
		chain = append(chain, c.Raw)
	}
	return sig, chain, err
}

// checkpointVerifier returns a function that verifies checkpoints under the
// pinned root of messages.
func checkpointVerifier(keys *keystore.Store) (func(chain [][]byte, text, signature []byte, at time.Time) error, error) {
	roots, err := keys.Root(keystore.MessageRoot)
	if err != nil {
		return nil, err
	}
	return func(chain [][]byte, text, signature []byte, at time.Time) error {
		leaf, err := envelope.Leaf(bytes.Join(chain, nil), roots, at)
		if err != nil {
			return err
		}
		pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
		if !ok || !sm2.VerifyASN1WithSM2(pub, nil, text, signature) {
			return errors.New("the signature is wrong")
		}
		return nil
	}, nil
}

// AuditFolder opens the sealed store of the gateway whose configuration is at
// path, for the verbs of a gateway that does not run.
func AuditFolder(path string) (*audit.Sealing, func(chain [][]byte, text, signature []byte, at time.Time) error, error) {
	cfg, err := Load(path)
	if err != nil {
		return nil, nil, err
	}
	if !cfg.Audit.sealed() {
		return nil, nil, fmt.Errorf("open audit store: audit.format is lines (read %s)", cfg.Audit.File)
	}
	pass, err := keystore.ReadPassphrase(cfg.Keys.PassphraseFile)
	if err != nil {
		return nil, nil, err
	}
	keys, err := keystore.Open(cfg.Keys.Dir, pass)
	if err != nil {
		return nil, nil, err
	}
	verify, err := checkpointVerifier(keys)
	if err != nil {
		return nil, nil, err
	}
	s, err := auditSealing(keys, &cfg.Audit, func() *keystore.Store { return keys })
	return s, verify, err
}

// auditRight is one of the three.
type auditRight int

const (
	auditRead auditRight = iota
	auditExport
	auditDelete
)

// mayAudit reports whether a local user has a right.
func (c *AuditConfig) mayAudit(right auditRight, uid string) bool {
	names := [...][]string{c.Rights.Read, c.Rights.Export, c.Rights.Delete}[right]
	if len(names) == 0 {
		return right != auditDelete && (uid == "0" || uid == strconv.Itoa(os.Geteuid()))
	}
	return slices.ContainsFunc(names, func(n string) bool {
		id, err := uidOf(n)
		return err == nil && id == uid
	})
}

// AuditDeleted is the answer to `audit delete`.
type AuditDeleted struct {
	Segments int `json:"segments"`
}

// auditHandler serves the verbs of `yumen audit`, each to who has the right.
func (g *Gateway) auditHandler() http.Handler {
	mux := http.NewServeMux()
	serve := func(pattern, verb string, right auditRight, f func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case g.auditStore == nil:
				adminsock.Refuse(w, http.StatusNotFound, errors.New("audit.format is lines: there is no sealed store"))
				return
			case !g.auditCfg.mayAudit(right, adminsock.UID(r)):
				g.audit.Write(&audit.Record{Time: g.now(), Kind: audit.Admin, GatewayID: g.id, UID: adminsock.UID(r), Object: verb, Remote: "unix", Result: "no_right", Detail: r.URL.RawQuery})
				adminsock.Refuse(w, http.StatusForbidden, fmt.Errorf("%s: user id %s has no right to it (audit.rights in the gateway's configuration)", verb, adminsock.UID(r)))
				return
			}
			err := f(w, r)
			g.auditAdmin(r, verb, r.URL.RawQuery, err)
			if err != nil {
				adminsock.Refuse(w, http.StatusBadRequest, err)
			}
		})
	}
	serve("GET /audit", "audit show", auditRead, g.auditLines)
	serve("GET /audit/export", "audit export", auditExport, g.auditLines)
	serve("GET /audit/verify", "audit verify", auditRead, func(w http.ResponseWriter, _ *http.Request) error {
		verify, err := checkpointVerifier(g.site.Load().keys)
		if err != nil {
			return err
		}
		p, err := g.auditStore.Verify(verify)
		if err == nil {
			adminsock.Reply(w, p)
		}
		return err
	})
	serve("POST /audit/delete", "audit delete", auditDelete, func(w http.ResponseWriter, r *http.Request) error {
		before, err := time.Parse(time.RFC3339, r.FormValue("before"))
		if err != nil {
			return fmt.Errorf("delete audit records: before: %w", err)
		}
		n, err := g.audit.Delete(before)
		if err == nil {
			adminsock.Reply(w, AuditDeleted{n})
		}
		return err
	})
	return mux
}

// auditLines streams records as lines of JSON: those between since and until,
// and of these the newest last.
func (g *Gateway) auditLines(w http.ResponseWriter, r *http.Request) error {
	sel, err := audit.ParseSelection(r.FormValue("since"), r.FormValue("until"), r.FormValue("last"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	_, err = sel.Copy(w, g.auditStore)
	return err
}
