package gateway

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

func TestListFilesDecideWhoGetsIn(t *testing.T) {
	w := newWorld(t)
	w.start()
	alice := w.client(w.alice())
	w.want(alice, "https://one.test/x", 200, "one.test for "+user)
	w.want(alice, "https://two.test/x", 403, "YM-303")
	w.want(w.client(w.certificate("urn:yumen:device:"+dev, "urn:yumen:user:USR00000009")), "https://one.test/", 403, "YM-3")
	w.want(w.client(w.certificate("urn:yumen:device:DEV00000009", "urn:yumen:user:"+user)), "https://one.test/", 403, "YM-3")
	w.want(w.client(w.certificate("urn:yumen:device:"+dev)), "https://one.test/", 401, "YM-")
	w.want(w.client(w.certificate("urn:yumen:user:"+user)), "https://one.test/", 401, "YM-")
	for name, c := range map[string]*http.Client{"no certificate": w.client(nil), "a stranger's": w.client(stranger(t))} {
		if status, body := w.get(c, "https://one.test/"); status != 0 {
			t.Errorf("%s: %d %s, want no handshake", name, status, body)
		}
	}
	if h := w.g.Health(); h != Ready {
		t.Errorf("health %s, want %s", h, Ready)
	}
}

func TestReloadTakesNewListsAndKeepsTheOldOnesFromBadFiles(t *testing.T) {
	w := newWorld(t)
	w.lists(5, 5, user+" "+dev+" "+app1)
	w.start()
	alice := w.client(w.alice())
	foreign, err := lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	stranger := w.party(foreign, "foreign", certid.Identity{Control: ctlID})
	both := user + " " + dev + " " + app1 + "," + app2
	good, err := os.ReadFile(filepath.Join(w.dir, "grants.list"))
	must(t, err)
	for _, c := range []struct {
		name, says string
		list       []byte
	}{
		{"older", "list_older", w.list(w.control, gwID, wire.GrantsList, 4, both)},
		{"foreign signer", "list_signer", w.list(stranger, gwID, wire.GrantsList, 6, both)},
		{"other gateway", "list_other_receiver", w.list(w.control, "GW000000002", wire.GrantsList, 6, both)},
		{"policies in its place", "message_invalid", w.list(w.control, gwID, wire.PoliciesList, 6)},
		{"cut short", "list_incomplete", good[:len(good)/2]},
		{"empty", "", nil},
	} {
		w.write("grants.list", string(c.list), 0o600)
		before := w.raised(alert.ListRefused) + w.raised(alert.ConfigRefused)
		if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: reload: %v, want %q", c.name, err, c.says)
		}
		w.want(alice, "https://one.test/", 200, "")
		w.want(alice, "https://two.test/", 403, "YM-303")
		if c.name == "older" && w.raised(alert.ListRefused)+w.raised(alert.ConfigRefused) < before+2 {
			t.Errorf("%s: no alert", c.name)
		}
	}
	w.lists(6, 6, both)
	must(t, w.g.Reload())
	w.want(alice, "https://two.test/", 200, "")
	w.lists(7, 7)
	must(t, w.g.Reload())
	w.want(alice, "https://one.test/", 403, "YM-3")

	// The versions outlive the process.
	must(t, w.stop())
	w.lists(6, 6, both)
	if _, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet()}); err == nil || !strings.Contains(err.Error(), "list_older") {
		t.Errorf("start with older lists: %v", err)
	}
}

// What a list takes away must not wait for a fault of the configuration, nor
// for a disk that takes no more.
func TestReloadNarrowsWhateverElseFails(t *testing.T) {
	t.Run("bad configuration", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		alice := w.client(w.alice())
		end := w.download(alice, "https://one.test/big")
		w.lists(2, 2)
		w.config("nonsense: 1")
		if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("reload: %v", err)
		}
		if err := <-end; err == nil {
			t.Error("the download ended well")
		}
		w.want(alice, "https://one.test/", 403, "YM-3")
	})
	t.Run("disk", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		alice := w.client(w.alice())
		w.want(alice, "https://one.test/", 200, "")
		end := w.download(alice, "https://one.test/big")
		state := filepath.Join(w.dir, "state")
		must(t, os.Rename(state, state+".away")) // no file can be made: for root as well
		w.lists(2, 2, "USR00000002 "+dev+" "+app1)
		if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), "store") {
			t.Errorf("reload: %v, want that the version was not stored", err)
		}
		must(t, os.Rename(state+".away", state))
		if err := <-end; err == nil {
			t.Error("the download ended well")
		}
		w.want(alice, "https://one.test/", 403, "YM-3")
		bob := w.client(w.certificate("urn:yumen:device:"+dev, "urn:yumen:user:USR00000002"))
		w.want(bob, "https://one.test/", 403, "YM-3") // nothing widens that is not stored
		must(t, w.g.Reload())
		w.want(bob, "https://one.test/", 200, "USR00000002")
	})
}

func TestReloadSwapsApplicationsWithoutCuttingOthers(t *testing.T) {
	w := newWorld(t)
	w.lists(1, 1, user+" "+dev+" "+app1+","+app2)
	w.start()
	alice := w.client(w.alice())
	stays, goes := w.download(alice, "https://one.test/big"), w.download(alice, "https://two.test/big")
	w.config(oneApp)
	must(t, w.g.Reload())
	select {
	case err := <-goes:
		if err == nil {
			t.Error("the download of the application that is gone ended well")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the download of the application that is gone goes on")
	}
	w.want(alice, "https://one.test/", 200, "")
	if status, _ := w.get(alice, "https://two.test/"); status == 200 {
		t.Error("the application that is gone still answers")
	}
	select {
	case err := <-stays:
		t.Errorf("the download of the unchanged application ended: %v", err)
	default:
	}
	w.config(twoApps)
	must(t, w.g.Reload())
	// A connection from the time when nobody wanted a certificate there is closed
	// with the refusal, so that the next one shows it.
	w.want(alice, "https://two.test/", 421, "YM-")
	w.want(alice, "https://two.test/", 200, "")
	w.lists(2, 2)
	must(t, w.g.Reload())
	if err := <-stays; err == nil {
		t.Error("the download of an application that is granted no more ended well")
	}
}

func TestReloadRefusedKeepsTheOldSite(t *testing.T) {
	w := newWorld(t)
	w.start()
	alice := w.client(w.alice())
	w.want(alice, "https://one.test/", 200, "")
	for name, more := range map[string]string{
		"unknown key":    twoApps + "colour: red\n",
		"no application": "apps: [{id: APP00000001}]\n",
		"restart needed": twoApps + "limits: {half_open: 7}\n",
	} {
		before := w.raised(alert.ConfigRefused)
		w.config(more)
		if err := w.g.Reload(); err == nil {
			t.Errorf("%s: reload: no error", name)
		}
		if name == "unknown key" && before == w.raised(alert.ConfigRefused) && before == 0 {
			t.Errorf("%s: no alert %s", name, alert.ConfigRefused)
		}
		w.want(alice, "https://one.test/", 200, "")
	}
	if w.raised(alert.ConfigRefused) == 0 {
		t.Errorf("no alert %s", alert.ConfigRefused)
	}
}

// R16: renewed keys and certificates are served after a reload; a pair that
// does not match is refused and the old one stays.
func TestR16_ReloadServesRenewedKeys(t *testing.T) {
	w := newWorld(t)
	w.start()
	serial := func() string {
		c := w.client(w.alice())
		r, err := c.Get("https://one.test/")
		must(t, err)
		defer r.Body.Close()
		_, _ = io.Copy(io.Discard, r.Body)
		return r.TLS.PeerCertificates[0].SerialNumber.String()
	}
	old := serial()
	renewed := w.party(w.ca, "renewed", certid.Identity{Gateway: gwID, Device: gwDev}, host1, host2)
	move := func(ext string) {
		must(t, os.Rename(filepath.Join(renewed.Dir(), "tls"+ext), filepath.Join(w.dir, "keys", "tls"+ext)))
	}
	move(".key")
	if err := w.g.Reload(); err == nil {
		t.Error("a key without its certificate was taken")
	}
	if serial() != old {
		t.Error("another certificate is served after a refused reload")
	}
	move(".crt")
	must(t, w.g.Reload())
	if serial() == old {
		t.Error("the old certificate is still served")
	}
	other := w.party(w.ca, "other", certid.Identity{Gateway: "GW000000002", Device: gwDev}, host1)
	for _, ext := range []string{".key", ".crt"} {
		must(t, os.Rename(filepath.Join(other.Dir(), "tls"+ext), filepath.Join(w.dir, "keys", "tls"+ext)))
	}
	if err := w.g.Reload(); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("another gateway's certificate: %v", err)
	}
}

// R23: a request in flight ends well, then Run returns and nothing is left.
func TestR23_ShutdownDrains(t *testing.T) {
	w := newWorld(t)
	w.start()
	r, err := w.client(w.alice()).Get("https://one.test/big?short")
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- w.stop() }()
	for w.g.port != nil { // until the port is closed
		if _, body := w.get(w.client(w.alice()), "https://one.test/"); strings.Contains(body, "refused") {
			break
		}
	}
	<-w.big // now the answer may end
	_, err = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	if err != nil {
		t.Errorf("the answer in flight was cut: %v", err)
	}
	must(t, <-done)
	if raw := w.auditText(); !strings.Contains(raw, `"stop"`) {
		t.Errorf("the audit lacks the stop: %s", raw)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "state", "admin.sock")); err == nil {
		t.Error("the admin socket is left")
	}
}

func TestCertificatesThatEndSoonAreReported(t *testing.T) {
	w := newWorld(t)
	g, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet()})
	must(t, err)
	defer g.close()
	s := g.site.Load()
	if soon := s.endSoon(time.Now()); len(soon) != 0 {
		t.Errorf("today: %v", soon)
	}
	for at, end := range s.ends {
		if soon := s.endSoon(end.Add(-certificateWarning / 2)); !slices.ContainsFunc(soon, func(s string) bool { return strings.HasPrefix(s, at+": ") }) {
			t.Errorf("before the end of %s: %v", at, soon)
		}
	}
}
