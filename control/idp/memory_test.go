package idp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

type fakeClock struct{ t time.Time }

func (c *fakeClock) now() time.Time { return c.t }

func TestMemoryIsBoundedAndForgets(t *testing.T) {
	c := &fakeClock{time.Unix(1_800_000_000, 0)}
	m := newMemory(c.now)
	for i := range maxHeld {
		if !m.begin(&request{id: fmt.Sprint(i)}) {
			t.Fatalf("request %d refused", i)
		}
	}
	if m.begin(&request{id: "one more"}) {
		t.Error("more requests than the bound")
	}
	c.t = c.t.Add(requestLife)
	if m.request("0") != nil || m.finish("0", "U") {
		t.Error("an old request is alive")
	}
	if !m.begin(&request{id: "new"}) || len(m.requests) != 1 {
		t.Errorf("%d requests are held after the old ones ended", len(m.requests))
	}
}

func TestCodeIsGoneWhenItIsLookedAt(t *testing.T) {
	c := &fakeClock{time.Unix(1_800_000_000, 0)}
	m := newMemory(c.now)
	m.begin(&request{id: "r"})
	if !m.finish("r", "U") || m.finish("r", "V") {
		t.Error("finish: want once")
	}
	m.putCode("c", "r")
	if r := m.takeCode("c"); r == nil || r.user != "U" {
		t.Fatalf("request %+v", r)
	}
	if m.takeCode("c") != nil {
		t.Error("the code was taken twice")
	}
	m.begin(&request{id: "s"})
	m.putCode("d", "s")
	c.t = c.t.Add(codeLife)
	if m.takeCode("d") != nil {
		t.Error("an old code was taken")
	}
}

func TestEndForgetsAUser(t *testing.T) {
	c := &fakeClock{time.Unix(1_800_000_000, 0)}
	m := newMemory(c.now)
	a, _ := m.putToken(token{user: "A", client: "x", until: c.t.Add(time.Hour)})
	b, _ := m.putToken(token{user: "B", client: "x", until: c.t.Add(time.Hour)})
	m.removeToken(b, "another client")
	m.end("A", "")
	if _, ok := m.token(a); ok {
		t.Error("a token of the ended user counts")
	}
	if _, ok := m.token(b); !ok {
		t.Error("another user's token is gone")
	}
	m.removeToken(b, "x")
	if _, ok := m.token(b); ok {
		t.Error("a revoked token counts")
	}
}

func TestLanguageOfABrowser(t *testing.T) {
	for header, want := range map[string]reason.Lang{"": reason.English, "zh-TW": reason.Chinese, "zh-CN,zh;q=0.9": reason.Chinese,
		"fr": reason.English, "fr, zh;q=0.5": reason.Chinese, "en-GB,zh;q=0.9": reason.English, "\xff": reason.English} {
		r := httptest.NewRequest("GET", "/login", nil)
		r.Header.Set("Accept-Language", header)
		if got := langOf(r); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
	r := httptest.NewRequest("GET", "/login?lang=zh", nil)
	if langOf(r) != reason.Chinese {
		t.Error("?lang is not heard")
	}
}

func TestNewRefusesWhatCannotBeSafe(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"plain issuer": {Issuer: "http://login.test", Keys: []Key{{"k", key}}},
		"path":         {Issuer: "https://login.test/a", Keys: []Key{{"k", key}}},
		"no key":       {Issuer: "https://login.test"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
