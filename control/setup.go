package control

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
)

// ConfigFile is the name of the configuration that [Init] writes.
const ConfigFile = "control.yaml"

// InitConfig is what [Init] needs. The zero value of an optional field selects
// its default.
type InitConfig struct {
	Dir    string   // folder to make; must not hold a control center yet; required
	ID     string   // default CTL00000001
	URL    string   // https base URL that parties will use; required
	Hosts  []string // further names and addresses of the certificate
	Listen string   // default the port of URL on every address
	Issuer string   // https URL of the embedded OpenID provider; empty: none
	Client string   // redirect URI of its first client; empty: none yet
	Logout string   // where that client's users come back to after they signed out
	CA     lab.Config
}

// Init makes a complete control center in a folder: passphrase, certificate
// authority, keys and a configuration with comments. It returns the path of the
// configuration.
func Init(c InitConfig) (string, error) {
	if c.ID == "" {
		c.ID = "CTL00000001"
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "", fmt.Errorf("make control center: %q is no https URL (for example https://control.example.com:8443)", c.URL)
	}
	file := filepath.Join(c.Dir, ConfigFile)
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("make control center: %s exists (take another folder, or remove it)", file)
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make control center: %w", err)
	}
	passphrase := make([]byte, 33)
	rand.Read(passphrase)
	text := base64.RawURLEncoding.EncodeToString(passphrase)
	passFile := filepath.Join(dir, "passphrase")
	if err := writeNew(passFile, text+"\n"); err != nil {
		return "", fmt.Errorf("make control center: %w", err)
	}
	if c.CA.LeafTTL == 0 {
		c.CA.LeafTTL = ownLife // parties pin the message certificates when they enrol
	}
	ca, err := lab.New(c.CA)
	if err == nil {
		err = ca.Save(filepath.Join(dir, "ca"), []byte(text))
	}
	if err != nil {
		return "", err
	}
	hosts := append([]string{u.Hostname()}, c.Hosts...)
	if c.Issuer != "" {
		i, err := url.Parse(c.Issuer)
		if err != nil || i.Scheme != "https" || i.Hostname() == "" {
			return "", fmt.Errorf("make control center: issuer %q is no https URL", c.Issuer)
		}
		hosts = append(hosts, i.Hostname())
	}
	keys, err := ca.Party(filepath.Join(dir, "keys"), []byte(text), certid.Identity{Control: c.ID}, unique(hosts))
	if err != nil {
		return "", err
	}
	for name, life := range map[string]time.Duration{keystore.TLS: tlsLife, keystore.TLCPSign: tlsLife, keystore.TLCPEnc: tlsLife, keystore.List: listLife} {
		if err := reissue(ca, keys, name, life); err != nil {
			return "", err
		}
	}
	if err := writeNew(file, c.yaml(u)); err != nil {
		return "", fmt.Errorf("make control center: %w", err)
	}
	cfg, err := LoadConfig(file)
	if err == nil {
		err = cfg.Validate()
	}
	return file, err
}

func unique(list []string) (out []string) {
	seen := map[string]bool{}
	for _, s := range list {
		if s != "" && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func (c *InitConfig) yaml(u *url.URL) string {
	listen := c.Listen
	if listen == "" {
		port := u.Port()
		if port == "" {
			port = "443"
		}
		listen = net.JoinHostPort("", port)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Yumen control center. Every setting that is not here has a default;
# yumen control run --print-config shows them all. Paths count from this folder.
id: %s
url: %q                # what enrolled parties are told
listen: [%q]           # IPv4 and IPv6
data_dir: %q
passphrase_file: %q    # opens ca/, keys/ and the store; mode 0600, keep a copy in a safe place
keys_dir: %q
ca_dir: %q
# token_life: 10m         # of the 11-character tokens of Table 18
# session_life: 12h       # then the user signs in again
# password_hash: argon2id # or pbkdf2-sm3
`, c.ID, c.URL, listen, "data", "passphrase", "keys", "ca")
	if c.Issuer == "" {
		b.WriteString("# idp:                    # embedded OpenID provider for browsers\n#   issuer: https://login.example.com:9443\n#   listen: [\":9443\"]\n")
		return b.String()
	}
	i, _ := url.Parse(c.Issuer)               // checked by Init
	host, _, _ := net.SplitHostPort(c.Listen) // the provider is reached where the links are; "" is everywhere
	port := i.Port()
	if port == "" {
		port = "443"
	}
	fmt.Fprintf(&b, "idp:\n  issuer: %q\n  listen: [%q]\n", c.Issuer, net.JoinHostPort(host, port))
	if c.Client != "" {
		fmt.Fprintf(&b, "  clients:\n    - id: gateway\n      redirect_uris: [%q]\n", c.Client)
		if c.Logout != "" {
			fmt.Fprintf(&b, "      logout_uris: [%q]\n", c.Logout)
		}
	}
	return b.String()
}

// LoadConfig reads a configuration file strictly: an unknown key is an error
// that shows its line. Relative paths count from the file's folder.
func LoadConfig(file string) (Config, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	var c Config
	if err := yaml.UnmarshalWithOptions(raw, &c, yaml.Strict()); err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", file, err)
	}
	dir := filepath.Dir(file)
	paths := []*string{&c.DataDir, &c.KeysDir, &c.CADir, &c.PassphraseFile, &c.AdminSocket, &c.AuditFile}
	if c.IDP != nil {
		for i := range c.IDP.Clients {
			paths = append(paths, &c.IDP.Clients[i].SecretFile)
		}
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// Defaults returns c with every default filled in, for showing it.
func (c Config) Defaults() Config {
	c.defaults()
	return c
}

// Socket returns the admin socket of a configuration.
func (c Config) Socket() string { return c.Defaults().AdminSocket }
