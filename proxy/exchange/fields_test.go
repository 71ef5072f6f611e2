package exchange

import (
	"strings"
	"testing"
)

func TestCookiesAreOneField(t *testing.T) {
	h := JoinCookies(Header{{Name: "a", Value: "1"}, {Name: "cookie", Value: "x=1"}, {Name: "b", Value: "2"}, {Name: "cookie", Value: "y=2"}, {Name: "cookie", Value: ""}, {Name: "c", Value: "3"}})
	var got []string
	for _, f := range h {
		got = append(got, f.Name+"="+f.Value)
	}
	if s := strings.Join(got, ","); s != "a=1,cookie=x=1; y=2; ,b=2,c=3" {
		t.Errorf("%s", s)
	}
	one := Header{{Name: "cookie", Value: "x=1"}}
	if n := testing.AllocsPerRun(10, func() { JoinCookies(one) }); n != 0 || one[0].Value != "x=1" {
		t.Errorf("one part: %v, %v allocations", one, n)
	}
}

// Thousands of parts are copied once.
func TestS25_CookiePartsAreCopiedOnce(t *testing.T) {
	parts := make(Header, 2000)
	for i := range parts {
		parts[i] = Field{Name: "cookie", Value: "a"}
	}
	if n := testing.AllocsPerRun(10, func() { JoinCookies(append(Header(nil), parts...)) }); n > 2 { // of the fields, and the cookie
		t.Errorf("%v allocations", n)
	}
}

func TestCleanKeepsWhatIsNoControlCharacter(t *testing.T) {
	for in, want := range map[string]string{
		"caf\xe9; x":        "caf\xe9; x",
		"caf\xe9\r\nSet: x": "caf\xe9  Set: x",
		"玉\x00门\x7f\t":      "玉 门 \t",
		"":                  "",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
