package prompt

import (
	"io"
	"strings"
	"testing"
)

func TestReadLineTakesOneLine(t *testing.T) {
	for in, want := range map[string]struct{ line, rest string }{
		"pass word\nnext\n": {"pass word", "next\n"},
		"windows\r\nx":      {"windows", "x"},
		"no end":            {"no end", ""},
		"\n":                {"", ""},
		"密码\n":              {"密码", ""},
	} {
		r := strings.NewReader(in)
		got, err := readLine(r)
		rest, _ := io.ReadAll(r)
		if err != nil || got != want.line || string(rest) != want.rest {
			t.Errorf("%q: got %q, %v, rest %q", in, got, err, rest)
		}
	}
	if _, err := readLine(strings.NewReader("")); err == nil {
		t.Error("an empty input is no line")
	}
	if _, err := readLine(strings.NewReader(strings.Repeat("x", maxSecret+1) + "\n")); err == nil {
		t.Error("a line beyond the limit was taken")
	}
}
