package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/idp"
	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// keyLoginKeys is where the provider's signing keys stand in the store.
const keyLoginKeys = "idp/keys"

type loginKey struct {
	ID  string `json:"id"`
	Key []byte `json:"key"` // PKCS#8
}

// newIDP makes the embedded OpenID provider on the accounts of the store.
func (s *Server) newIDP() (*idp.Provider, error) {
	keys, err := s.loginKeys()
	if err != nil {
		return nil, err
	}
	cfg := idp.Config{Issuer: s.cfg.IDP.Issuer, Keys: keys, Now: s.cfg.Now, CryptoKey: [32]byte(s.st.Key("idp access tokens"))}
	for _, c := range s.cfg.IDP.Clients {
		out := idp.Client{ID: c.ID, RedirectURIs: c.RedirectURIs, LogoutURIs: c.LogoutURIs}
		if c.SecretFile != "" {
			secret, err := keystore.ReadPassphrase(c.SecretFile)
			if err != nil {
				return nil, fmt.Errorf("read secret of client %s: %w", c.ID, err)
			}
			out.Secret = string(secret)
		}
		cfg.Clients = append(cfg.Clients, out)
	}
	cfg.SignIn = func(ctx context.Context, name, password, remote string) (idp.Account, reason.Reason) {
		u, _, why := s.checkPassword(ctx, name, password, remote)
		if u == nil {
			return idp.Account{}, why
		}
		return accountOf(u), why
	}
	cfg.Notice = s.lockMessage
	cfg.Account = func(id string) (a idp.Account, ok bool) {
		s.view(func(st *model.State) {
			if u := st.Users[id]; u != nil && st.Locks[model.LockRef{Kind: "user", ID: id}] == nil {
				a, ok = accountOf(u), true
			}
		})
		return a, ok
	}
	cfg.Audit = func(e idp.Event) {
		kind := audit.Login
		if e.What == "logout" {
			kind = audit.Logout
		}
		s.audit.Write(&audit.Record{Time: s.cfg.Now(), Kind: kind, Object: "oidc " + e.Client, UserID: e.User, Remote: e.Remote,
			Allowed: e.Reason == reason.OK, Result: e.Reason.String(), Code: e.Reason})
	}
	return idp.New(cfg)
}

func accountOf(u *model.User) idp.Account {
	return idp.Account{ID: u.ID, Name: u.Name, Display: u.Display}
}

// loginKeys returns the signing keys of the store; the first call makes one.
func (s *Server) loginKeys() ([]idp.Key, error) {
	e, ok, err := s.st.Get(keyLoginKeys)
	if err != nil {
		return nil, err
	}
	var held []loginKey
	if ok {
		if err := json.Unmarshal(e.Value, &held); err != nil {
			return nil, fmt.Errorf("read login keys: %w", err)
		}
	} else {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make login key: %w", err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("make login key: %w", err)
		}
		public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("make login key: %w", err)
		}
		sum := sha256.Sum256(public)
		held = []loginKey{{ID: hex.EncodeToString(sum[:8]), Key: pkcs8}}
		raw, err := json.Marshal(held)
		if err != nil {
			return nil, fmt.Errorf("make login key: %w", err)
		}
		if _, err := s.st.Txn([]store.Compare{{Key: keyLoginKeys}}, []store.Op{store.Put(keyLoginKeys, raw)}); err != nil {
			return nil, fmt.Errorf("keep login key: %w", err)
		}
	}
	var keys []idp.Key
	for _, h := range held {
		k, err := x509.ParsePKCS8PrivateKey(h.Key)
		if err != nil {
			return nil, fmt.Errorf("read login keys: %w", err)
		}
		ec, ok := k.(*ecdsa.PrivateKey)
		if !ok {
			return nil, errors.New("read login keys: one is no ECDSA key")
		}
		keys = append(keys, idp.Key{ID: h.ID, Key: ec})
	}
	return keys, nil
}
