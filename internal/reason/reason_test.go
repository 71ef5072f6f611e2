package reason

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"testing"
)

// Every constant has a catalogue line and every line a constant, so that no
// log, page or reply can show a bare number.
func TestEveryReasonIsInTheCatalogue(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[Reason]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Reason" {
			n, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			if was, twice := declared[Reason(n)]; twice {
				t.Errorf("number %d: %s and %s", n, was, v.Names[0].Name)
			}
			declared[Reason(n)] = v.Names[0].Name
		}
		return true
	})
	if len(declared) < 50 {
		t.Fatalf("found %d constants: the test no longer reads the file", len(declared))
	}
	for r, name := range declared {
		if _, ok := catalogue[r]; !ok {
			t.Errorf("%s (%d): no catalogue line", name, r)
		}
	}
	for r, e := range catalogue {
		if _, ok := declared[r]; !ok {
			t.Errorf("%s (%d): no constant", e.name, r)
		}
	}
}

func TestCatalogueTexts(t *testing.T) {
	printable := regexp.MustCompile(`^[ -~]+$`)
	names := map[string]Reason{}
	for r, e := range catalogue {
		if !regexp.MustCompile(`^[a-z][a-z0-9_]*$`).MatchString(e.name) {
			t.Errorf("%d: name %q", r, e.name)
		}
		if was, twice := names[e.name]; twice {
			t.Errorf("%q names %d and %d", e.name, was, r)
		}
		names[e.name] = r
		if e.zh == "" || !printable.MatchString(r.Result()) {
			t.Errorf("%s: result %q, Chinese %q", e.name, r.Result(), e.zh)
		}
		if (e.adviceEN == "") != (e.adviceZH == "") {
			t.Errorf("%s: advice in one language only", e.name)
		}
		if s := r.Status(); s < 200 || s > 599 {
			t.Errorf("%s: status %d", e.name, s)
		}
	}
}

// A person who may not use an application must not learn whether it exists
// (M78), nor whether a token belongs to somebody else (S3).
func TestGCR002_M78_RefusalsThatMustLookAlike(t *testing.T) {
	for _, pair := range [][2]Reason{{AppUnknown, AppNotGranted}, {TokenUnknown, TokenOtherDevice}} {
		if a, b := pair[0], pair[1]; a.Result() != b.Result() || a.Public() != b.Public() || a.Status() != b.Status() {
			t.Errorf("%s and %s read differently", a, b)
		}
	}
}

func TestParse(t *testing.T) {
	for _, r := range All() {
		for _, s := range []string{r.String(), r.Code(), strconv.Itoa(int(r))} {
			if got, err := Parse(s); err != nil || got != r {
				t.Errorf("Parse(%q) = %v, %v, want %v", s, got, err, r)
			}
		}
	}
	if _, err := Parse("YM-999"); err == nil {
		t.Error("Parse took an unknown code")
	}
}
