package control

import (
	"crypto/x509"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/wire"
)

func TestGCR002_Enrol_CodeWorksOnce(t *testing.T) {
	w := newWorld(t)
	n, code := w.code(NewDevice{Kind: "agent", Name: "laptop"})
	if code.URL != w.cfg.URL || len(code.Fingerprint) != 64 || code.Kind != "agent" || n.Until.IsZero() {
		t.Errorf("code %+v", code)
	}
	_, q := w.enrolRequest(code.Secret)
	hc := w.anonymous()
	// Many at the same moment: one gets the certificates.
	var mu sync.Mutex
	got := map[int]int{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			status, _ := w.postEnrol(hc, q)
			mu.Lock()
			defer mu.Unlock()
			got[status]++
		})
	}
	wg.Wait()
	if got[200] != 1 || got[403] != 3 {
		t.Errorf("answers %v, want one 200 and three 403", got)
	}
	if status, _ := w.postEnrol(hc, q); status != 403 {
		t.Errorf("used again: %d", status)
	}
	// Enrolled again with a new code, the old certificates open nothing.
	var devices []DeviceInfo
	w.do("GET", "/v1/devices", nil, &devices)
	if len(devices) != 1 || devices[0].Enrolled.IsZero() || devices[0].Name != "test" || !devices[0].CodeUntil.IsZero() {
		t.Errorf("devices %+v", devices)
	}
}

func TestGCR002_Enrol_NewCertificatesReplaceTheOld(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	gw.identify()
	var n NewCode
	w.do("POST", "/v1/devices/"+gw.id+"/code", nil, &n)
	gw.identify() // a code alone changes nothing
	c, err := wire.ParseEnrolCode(n.Code)
	if err != nil {
		t.Fatal(err)
	}
	_, q := w.enrolRequest(c.Secret)
	status, r := w.postEnrol(w.anonymous(), q)
	if status != 200 || r.ID != gw.id || r.DeviceID != gw.device {
		t.Fatalf("%d %+v", status, r)
	}
	resp, err := gw.hc.Get(gw.base + "/lists/grants")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("old certificate: %d", resp.StatusCode)
	}
}

func TestGCR002_Enrol_Refusals(t *testing.T) {
	c := &movedClock{}
	w := newWorld(t, func(cfg *Config) { cfg.Now, cfg.Lockout.PerSource = c.Now, 1000 })
	hc := w.anonymous()
	n, code := w.code(NewDevice{Kind: "agent"})
	try := func(secret string) int {
		_, q := w.enrolRequest(secret)
		status, _ := w.postEnrol(hc, q)
		return status
	}
	_, good := w.enrolRequest(code.Secret)
	broken := *good
	broken.CSR.Sign = broken.CSR.TLS // the wrong kind of key
	if status, _ := w.postEnrol(hc, &broken); status != 400 {
		t.Errorf("a request with the wrong kind of key: %d", status)
	}
	for _, secret := range []string{"", "x", "AGT99999999.x", code.Secret + "x", strings.ToLower(code.Secret)} {
		if status := try(secret); status != 403 {
			t.Errorf("secret %.16q: %d", secret, status)
		}
	}
	// The right one still works: a wrong guess does not void it at once.
	if status, _ := w.postEnrol(hc, good); status != 200 {
		t.Errorf("the right secret: %d", status)
	}
	n, code = w.code(NewDevice{Kind: "agent"})
	for range maxEnrolTries {
		try(n.ID + ".wrong")
	}
	if status := try(code.Secret); status != 403 {
		t.Errorf("after %d wrong secrets: %d", maxEnrolTries, status)
	}
	_, code = w.code(NewDevice{Kind: "agent"})
	c.move(time.Hour)
	if status := try(code.Secret); status != 403 {
		t.Errorf("an expired code: %d", status)
	}
	for _, r := range w.audited("enrol " + n.ID) {
		if strings.Contains(r.Detail, code.Secret) {
			t.Error("the secret stands in the audit")
		}
	}
}

func TestGCR002_Enrol_GuessingIsLimitedByAddress(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Lockout.PerSource = 3 })
	_, code := w.code(NewDevice{Kind: "agent"})
	hc := w.anonymous()
	_, q := w.enrolRequest("AGT99999999.x")
	for range 3 {
		if status, _ := w.postEnrol(hc, q); status != 403 {
			t.Fatal(status)
		}
	}
	q.Secret = code.Secret
	if status, _ := w.postEnrol(hc, q); status != 429 {
		t.Errorf("after 3 wrong codes: %d", status)
	}
}

func TestQ23_ApplicationsConnectorIsEnrolledUnderItsAppID(t *testing.T) {
	w := newWorld(t)
	app := w.app("wiki", "10.0.0.5:443")
	c := w.enrol(NewDevice{Kind: "app", ID: app, Addresses: []string{"wiki.test:8443"}})
	if c.id != app || c.device != "" {
		t.Errorf("enrolled as %q on %q", c.id, c.device)
	}
	chain, err := c.keys.Chain(keystore.TLS)
	if err != nil {
		t.Fatal(err)
	}
	id, err := certid.OfSM(chain[0])
	if err != nil || id != (certid.Identity{App: app}) || len(chain[0].DNSNames) != 1 || chain[0].DNSNames[0] != "wiki.test" {
		t.Errorf("certificate of %+v for %v, %v", id, chain[0].DNSNames, err)
	}
}

// A gateway moves: agents learn the new addresses by Table 19 at once, and the
// certificate of the next enrolment has their names.
func TestGCR002_T19_NewAddressesReachAgentsAndTheNextCertificate(t *testing.T) {
	s := newSite(t)
	s.signIn()
	s.do("PUT", "/v1/devices/"+s.gw.id+"/addresses", Addresses{[]string{"new.test:8443", "192.0.2.7:443"}}, nil)
	if resp, body := s.agent.get("/resources"); resp.StatusCode != 200 {
		t.Fatalf("T19: %d %s", resp.StatusCode, body)
	}
	var gateways []wire.GatewayRef
	if err := json.Unmarshal(s.agent.answered.Header.Ext[wire.ExtGateways], &gateways); err != nil || len(gateways) != 1 || !slices.Equal(gateways[0].Addresses, []string{"new.test:8443", "192.0.2.7:443"}) {
		t.Errorf("gateways %+v, %v", gateways, err)
	}
	var n NewCode
	s.do("POST", "/v1/devices/"+s.gw.id+"/code", nil, &n)
	code, err := wire.ParseEnrolCode(n.Code)
	if err != nil {
		t.Fatal(err)
	}
	_, q := s.enrolRequest(code.Secret)
	status, r := s.postEnrol(s.anonymous(), q)
	if status != 200 {
		t.Fatalf("enrol again: %d", status)
	}
	leaf, err := x509.ParseCertificate(leafDER([]byte(r.Certs.TLS)))
	if err != nil || leaf.VerifyHostname("new.test") != nil || leaf.VerifyHostname("192.0.2.7") != nil || leaf.VerifyHostname("gw.test") == nil {
		t.Errorf("names %v %v, %v", leaf.DNSNames, leaf.IPAddresses, err)
	}
}
