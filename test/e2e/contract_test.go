package e2e

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/test/testbed"
)

// samples returns the code blocks of the contract by the name in their first
// line.
func samples(t *testing.T) map[string]string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/app-contract.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for i, block := range strings.Split(string(doc), "\n```") {
		if i%2 == 0 {
			continue
		}
		_, text, _ := strings.Cut(block, "\n")
		head, _, _ := strings.Cut(text, "\n")
		head = strings.TrimLeft(head, "/# ")
		name, _, _ := strings.Cut(head, ",")
		out[name] = text + "\n"
	}
	return out
}

// The samples that application teams are given verify what the gateway sends,
// and nothing else.
func TestM153_SamplesOfTheContractVerifyTheAssertion(t *testing.T) {
	t.Parallel()
	s := shared(t)
	c := s.HTTP(s.Client(alice, aliceDevice), false)
	get := func(path string) []byte {
		res, err := c.Get(s.URL(s.app, path))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s %v", path, res.StatusCode, b, err)
		}
		return b
	}
	jwks := get("/.well-known/yumen/jwks.json")
	get("/contract")
	token := ""
	for _, seen := range s.web.Seen() {
		if seen.Path == "/contract" {
			token = seen.Header.Get("X-Yumen-Assertion")
		}
	}
	if token == "" {
		t.Fatal("no assertion arrived")
	}
	dir, code := t.TempDir(), samples(t)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keys := write("jwks.json", string(jwks))
	p := strings.Split(token, ".")
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims, _ := base64.RawURLEncoding.DecodeString(p[1])
	bad := map[string][2]string{ // token, appId
		"another application": {token, "APP00000002"},
		"changed":             {p[0] + "." + part(strings.Replace(string(claims), alice, "USR00000009", 1)) + "." + p[2], s.app.ID},
		"alg none":            {part(`{"alg":"none"}`) + "." + p[1] + ".", s.app.ID},
		"HS256":               {part(`{"alg":"HS256"}`) + "." + p[1] + "." + p[2], s.app.ID},
		"unknown key":         {part(`{"alg":"ES256","kid":"x"}`) + "." + p[1] + "." + p[2], s.app.ID},
		"no signature":        {p[0] + "." + p[1] + ".", s.app.ID},
		"zero signature":      {p[0] + "." + p[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), s.app.ID},
		"junk":                {"x.y.z", s.app.ID},
	}
	for _, l := range []struct {
		name, file string
		long       bool
		needs      string
		command    func(t *testing.T, file string) []string
	}{
		{"Python", "verify.py", false, "python3", func(t *testing.T, f string) []string { return []string{python(t), f} }},
		{"Go", "verify.go", true, "go", func(t *testing.T, f string) []string {
			bin := filepath.Join(dir, "verify")
			if out, err := exec.Command("go", "build", "-o", bin, f).CombinedOutput(); err != nil {
				t.Fatalf("build: %v %s", err, out)
			}
			return []string{bin}
		}},
		{"Java", "Verify.java", true, "javac", func(t *testing.T, f string) []string {
			if out, err := exec.Command("javac", "-d", dir, f).CombinedOutput(); err != nil {
				t.Fatalf("build: %v %s", err, out)
			}
			return []string{"java", "-Xshare:auto", "-cp", dir, "Verify"}
		}},
	} {
		t.Run(l.name, func(t *testing.T) {
			if l.long && !testbed.Long() {
				t.Skip("needs YUMEN_LONG=1: it is compiled")
			}
			if _, err := exec.LookPath(l.needs); err != nil {
				t.Skipf("needs %s: %v", l.needs, err)
			}
			if code[l.file] == "" {
				t.Fatalf("docs/app-contract.md has no %s", l.file)
			}
			command := l.command(t, write(l.file, code[l.file]))
			run := func(token, app string) (string, error) {
				cmd := exec.Command(command[0], append(command[1:], keys, app)...)
				cmd.Stdin = strings.NewReader(token + "\n")
				out, err := cmd.CombinedOutput()
				return strings.TrimSpace(string(out)), err
			}
			if out, err := run(token, s.app.ID); err != nil || out != alice {
				t.Errorf("%q, %v, want %s", out, err, alice)
			}
			for name, b := range bad {
				if !testbed.Long() && name != "changed" && name != "alg none" {
					continue
				}
				if out, err := run(b[0], b[1]); err == nil || !strings.HasPrefix(out, "refused:") {
					t.Errorf("%s: %q, %v", name, out, err)
				}
			}
		})
	}
	t.Run("nginx", func(t *testing.T) {
		nginx, err := exec.LookPath("nginx")
		if err != nil {
			t.Skipf("needs nginx: %v", err)
		}
		conf := write("nginx.conf", "daemon off; pid "+dir+"/pid; error_log stderr; events {}\nhttp { access_log off;\n"+code["nginx.conf"]+"}\n")
		if out, err := exec.Command(nginx, "-t", "-p", dir, "-c", conf).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("successful")) {
			t.Errorf("%v %s", err, out)
		}
	})
}

// python returns the Python that has the package cryptography: the system's may
// stand behind another one.
func python(t *testing.T) string {
	for _, p := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(p, "-c", "import cryptography").Run() == nil {
			return p
		}
	}
	t.Skip("NOT TESTED: needs the package cryptography of Python (python3-cryptography)")
	return ""
}
