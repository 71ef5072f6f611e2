package apps

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// A browser signs in by the form, loads a page, and the page uploads, listens to
// events and talks over a WebSocket; over HTTP/1.1, HTTP/2 and HTTP/3.
func TestChromiumLoadsAPage(t *testing.T) {
	long(t, "it wants a browser")
	w := site(t)
	host := "node." + testbed.Domain
	for _, c := range []struct {
		protocol, carrier string
		args              []string
	}{
		{"http/1.1", "h1", []string{"--disable-http2", "--disable-quic"}},
		{"h2", "h2", []string{"--disable-quic"}},
		{"h3", "h3", []string{"--enable-quic", fmt.Sprintf("--origin-to-force-quic-on=%s:%d", host, w.Port)}},
	} {
		t.Run(c.carrier, func(t *testing.T) {
			u := w.NewUser("chromium" + c.carrier)
			w.Grant(u, "browser", time.Time{}, nodeID)
			b := newChromium(t, w, c.args...)
			b.open(w.URL("node", "/"))
			b.until("the form of the provider", `!!document.querySelector('input[name=password]')`)
			b.eval(fmt.Sprintf(`document.querySelector('input[name=name]').value=%q;document.querySelector('input[name=password]').value=%q;document.querySelector('form').submit()`, u.Name, u.Password))
			b.until("the page", `document.title==='done'`)
			var got struct {
				Page, User, Upload, Expected, Echo, Error string
				Events                                    []string
				Code                                      int
			}
			text, _ := b.eval("window.outcome").(string)
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err, text)
			}
			t.Log(text)
			if got.Page != c.protocol || got.User != u.ID || got.Upload == "" || got.Upload != got.Expected || len(got.Events) != 3 || got.Echo != "through the gate 玉门" || got.Code != 4000 || got.Error != "" {
				t.Errorf("the page saw %s, want it over %s as %s", text, c.protocol, u.ID)
			}
			w.GatewayAudit.Await(t, 1, "the page over "+c.carrier, func(r *audit.Record) bool {
				return r.Kind == audit.End && r.UserID == u.ID && r.Carrier == c.carrier && r.Path == "/whoami"
			})

			w.Lock(u, "see the security desk")
			b.open(w.URL("node", "/"))
			b.until("the page of the refusal", `document.body.innerText.includes('YM-219')`)
		})
	}
}

// chromium is a browser without a window, driven by its DevTools protocol.
type chromium struct {
	t  *testing.T
	c  *websocket.Conn
	id int
}

var devTools = regexp.MustCompile(`DevTools listening on (ws://\S+)`)

func newChromium(t *testing.T, w *world, args ...string) *chromium {
	t.Helper()
	words := append([]string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--user-data-dir=" + t.TempDir(), "--remote-debugging-port=0", "--remote-allow-origins=*",
		fmt.Sprintf("--host-resolver-rules=MAP *.%s 127.0.0.1", testbed.Domain),
		"--ignore-certificate-errors-spki-list=" + w.pins(t),
	}, args...)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program(t, "chromium"), append(words, "about:blank")...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := devTools.FindStringSubmatch(lines.Text()); m != nil {
				at <- m[1]
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-read; _ = cmd.Wait() }) // it is killed
	var browser string
	select {
	case browser = <-at:
	case <-time.After(60 * time.Second):
		t.Fatal("chromium does not say where its DevTools listen")
	}
	b := &chromium{t: t}
	b.dial(browser)
	var made struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &made)
	b.c.Close()
	u, err := url.Parse(browser)
	if err != nil {
		t.Fatal(err)
	}
	b.dial("ws://" + u.Host + "/devtools/page/" + made.TargetID)
	t.Cleanup(func() { b.c.Close() })
	b.call("Page.enable", nil, nil)
	return b
}

// pins are the keys of the gateway and of the identity provider, whose roots the
// browser does not know.
func (w *world) pins(t *testing.T) string {
	t.Helper()
	idp, err := url.Parse(w.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, at := range [][2]string{{testbed.Loopback(false, w.Port), "node." + testbed.Domain}, {"127.0.0.1:" + idp.Port(), "localhost"}} {
		c, err := tls.Dial("tcp", at[0], &tls.Config{ServerName: at[1], InsecureSkipVerify: true}) // what the key is, is asked
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(c.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
		all = append(all, base64.StdEncoding.EncodeToString(sum[:]))
		c.Close()
	}
	return strings.Join(all, ",")
}

func (b *chromium) dial(at string) {
	b.t.Helper()
	var err error
	if b.c, err = websocket.Dial(at, "", "http://localhost"); err != nil {
		b.t.Fatal(err)
	}
}

// call runs a method and passes over the events that come before its answer.
func (b *chromium) call(method string, params, result any) {
	b.t.Helper()
	b.id++
	_ = b.c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := websocket.JSON.Send(b.c, map[string]any{"id": b.id, "method": method, "params": params}); err != nil {
		b.t.Fatal(err)
	}
	for {
		var m struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := websocket.JSON.Receive(b.c, &m); err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		if m.ID != b.id {
			continue
		}
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatal(err)
			}
		}
		return
	}
}

func (b *chromium) open(at string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": at}, nil)
}

func (b *chromium) eval(script string) any {
	b.t.Helper()
	var r struct{ Result struct{ Value any } }
	b.call("Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true}, &r)
	return r.Result.Value
}

func (b *chromium) until(what, script string) {
	b.t.Helper()
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // another process: nothing to wait on
		if b.eval(script) == true {
			return
		}
	}
	b.t.Fatalf("%s does not come: %v shows %.600v", what, b.eval("location.href"), b.eval("document.documentElement.innerText"))
}
