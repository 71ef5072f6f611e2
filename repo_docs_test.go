package yumen

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// The tests of this file keep the documents equal to the code.

func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section returns the text below the heading "## name".
func section(t *testing.T, doc, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(doc, "\n## "+name+"\n")
	if !ok {
		t.Fatalf("no section %q", name)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// tableRows returns the cells of every table row of text, headers and rules
// left out.
func tableRows(text string) (rows [][]string) {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if !strings.HasPrefix(l, "|") || strings.HasPrefix(l, "|---") || i+1 < len(lines) && strings.HasPrefix(lines[i+1], "|---") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(l), "|"), "|")
		for k := range cells {
			cells[k] = strings.TrimSpace(cells[k])
		}
		rows = append(rows, cells)
	}
	return rows
}

// code returns the text of a cell that is `code`, or "".
func code(cell string) string {
	if len(cell) > 2 && cell[0] == '`' && cell[len(cell)-1] == '`' {
		return cell[1 : len(cell)-1]
	}
	return ""
}

// settings returns the paths of every YAML setting of type t.
func settings(t reflect.Type, path string) []string {
	switch {
	case t.Kind() == reflect.Pointer:
		return settings(t.Elem(), path)
	case t.Kind() == reflect.Slice:
		return settings(t.Elem(), path+"[]")
	case t.Kind() == reflect.Map:
		return settings(t.Elem(), path+"{}")
	case t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]():
		return []string{path}
	}
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if option == "inline" {
			out = append(out, settings(f.Type, path)...)
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		if path != "" {
			name = path + "." + name
		}
		out = append(out, settings(f.Type, name)...)
	}
	return out
}

func TestConfigDocHoldsEverySetting(t *testing.T) {
	doc := document(t, "docs/config.md")
	for name, config := range map[string]reflect.Type{
		"gateway.yaml": reflect.TypeFor[gateway.Config](),
		"agent.yaml":   reflect.TypeFor[agent.Config](),
		"control.yaml": reflect.TypeFor[control.Config](),
	} {
		var got []string
		for _, row := range tableRows(section(t, doc, name)) {
			got = append(got, code(row[0]))
			if slices.Contains(row, "") {
				t.Errorf("docs/config.md, %s: a row of %q has an empty cell", name, row[0])
			}
		}
		compare(t, "docs/config.md, "+name, got, settings(config, ""))
	}
}

// compare reports what is missing and what is too much, and what stands twice.
func compare(t *testing.T, where string, got, want []string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s: %q is missing", where, w)
		}
	}
	for i, g := range got {
		switch {
		case !slices.Contains(want, g):
			t.Errorf("%s: %q is not in the code", where, g)
		case slices.Index(got, g) != i:
			t.Errorf("%s: %q stands twice", where, g)
		}
	}
}

func TestConfigDocExamplesAreGood(t *testing.T) {
	most := []int{15, 25} // active lines of the gateway's examples
	gateways := 0
	for _, block := range strings.Split(document(t, "docs/config.md"), "```yaml\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		head, _, _ := strings.Cut(text, "\n")
		file := filepath.Join(t.TempDir(), strings.TrimPrefix(head, "# "))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		switch filepath.Base(file) {
		case "gateway.yaml":
			active := 0
			for l := range strings.Lines(text) {
				if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
					active++
				}
			}
			if gateways < len(most) && active > most[gateways] {
				t.Errorf("example %d of gateway.yaml: %d active lines, at most %d", gateways+1, active, most[gateways])
			}
			gateways++
			_, err = gateway.Load(file)
		case "agent.yaml":
			_, err = agent.Load(file)
		case "control.yaml":
			var c control.Config
			if c, err = control.LoadConfig(file); err == nil {
				err = c.Validate()
			}
		default:
			t.Errorf("example begins with %q: not the name of a file", head)
		}
		if err != nil {
			t.Errorf("docs/config.md: %v", err)
		}
	}
	if gateways != len(most) {
		t.Errorf("docs/config.md has %d examples of gateway.yaml, want %d", gateways, len(most))
	}
}

func TestObservabilityDocHoldsTheAlertCatalogue(t *testing.T) {
	var got, want []string
	for _, row := range tableRows(section(t, document(t, "docs/observability.md"), "Alerts")) {
		if c := code(row[0]); c != "" {
			got = append(got, strings.Join(append([]string{c}, row[1:]...), " | "))
		}
	}
	for _, e := range alert.Catalogue() {
		agents := "no"
		if e.ToAgent {
			agents = "yes"
		}
		want = append(want, strings.Join([]string{string(e.Code), strconv.Itoa(int(e.Level)), agents, e.EN, e.ZH, e.AdviceEN, e.AdviceZH}, " | "))
	}
	compare(t, "docs/observability.md, Alerts", got, want)
}

func TestObservabilityDocHoldsTheAuditRecord(t *testing.T) {
	doc := section(t, document(t, "docs/observability.md"), "Audit")
	var fields, kinds []string
	for _, row := range tableRows(doc) {
		if c, ok := strings.CutPrefix(code(row[0]), "kind: "); ok {
			kinds = append(kinds, c)
		} else {
			fields = append(fields, code(row[0]))
		}
	}
	var want []string
	for f := range reflect.TypeFor[audit.Record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want = append(want, name)
	}
	compare(t, "docs/observability.md, fields of the audit record", fields, want)
	compare(t, "docs/observability.md, kinds of audit records", kinds, auditKinds(t))
}

// auditKinds returns the values of the constants of type audit.Kind.
func auditKinds(t *testing.T) (kinds []string) {
	ast.Inspect(parse(t, "internal/audit/audit.go"), func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Type != nil {
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Kind" {
				kinds = append(kinds, text(v.Values[0]))
			}
		}
		return true
	})
	return kinds
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// text returns the value of a string literal, or "".
func text(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
		s, _ := strconv.Unquote(l.Value) // the parser has taken it
		return s
	}
	return ""
}

var metricName = regexp.MustCompile(`^yumen_[a-z0-9_]+$`)

// metricNames returns the names of every metric that the code of file makes:
// literals, and what a local function puts behind a literal prefix.
func metricNames(f *ast.File) (names []string) {
	prefixes := map[string]string{} // by the name of the function
	note := func(name ast.Expr, value ast.Expr) {
		fn, ok := value.(*ast.FuncLit)
		id, named := name.(*ast.Ident)
		if !ok || !named {
			return
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if s := text(e); metricName.MatchString(s) && strings.HasSuffix(s, "_") {
					prefixes[id.Name] = s
				}
			}
			return true
		})
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i := range min(len(n.Lhs), len(n.Rhs)) {
				note(n.Lhs[i], n.Rhs[i])
			}
		case *ast.ValueSpec:
			for i := range min(len(n.Names), len(n.Values)) {
				note(n.Names[i], n.Values[i])
			}
		}
		return true
	})
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && prefixes[id.Name] != "" && len(n.Args) > 0 && text(n.Args[0]) != "" {
				names = append(names, prefixes[id.Name]+text(n.Args[0]))
			}
		case *ast.BasicLit:
			if s := text(n); metricName.MatchString(s) && !strings.HasSuffix(s, "_") {
				names = append(names, s)
			}
		}
		return true
	})
	return names
}

func TestObservabilityDocHoldsEveryMetric(t *testing.T) {
	var want, got []string
	for file := range goFiles(t) {
		if dir, _, _ := strings.Cut(file, "/"); !strings.HasSuffix(file, "_test.go") && dir != "test" && dir != "bench" {
			want = append(want, metricNames(parse(t, file))...)
		}
	}
	if len(want) < 30 {
		t.Fatalf("found %d metrics in the code: the test no longer reads them", len(want))
	}
	for _, row := range tableRows(section(t, document(t, "docs/observability.md"), "Metrics")) {
		if c := code(row[0]); c != "" {
			got = append(got, c)
		}
	}
	compare(t, "docs/observability.md, Metrics", got, want)
}

// testNames returns the name of every test function of the repository.
func testNames(t *testing.T) map[string]bool {
	names := map[string]bool{}
	for file := range goFiles(t) {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, d := range parse(t, file).Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				names[f.Name.Name] = true
			}
		}
	}
	return names
}

var (
	testName = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z][A-Za-z0-9_]*`)
	rowName  = regexp.MustCompile(`^[MQRS][0-9]+$`)
)

func TestClauseDocNamesTestsThatExist(t *testing.T) {
	doc, names := document(t, "docs/gcr002.md"), testNames(t)
	found := testName.FindAllString(doc, -1)
	if len(found) < 100 {
		t.Fatalf("docs/gcr002.md names %d tests: the test no longer reads it", len(found))
	}
	for _, n := range found {
		if !names[n] {
			t.Errorf("docs/gcr002.md names %s, which is no test", n)
		}
	}
}

func TestClauseDocHoldsEveryRow(t *testing.T) {
	rows := map[string]string{}
	for _, row := range tableRows(document(t, "docs/gcr002.md")) {
		for name := range strings.SplitSeq(row[0], ", ") {
			if rowName.MatchString(name) {
				if rows[name] != "" {
					t.Errorf("docs/gcr002.md: row %s stands twice", name)
				}
				rows[name] = strings.Join(row[1:], " | ")
			}
		}
	}
	for prefix, last := range map[string]int{"M": 105, "Q": 33, "R": 24, "S": 40} {
		for n := 1; n <= last; n++ {
			if name := prefix + strconv.Itoa(n); rows[name] == "" {
				t.Errorf("docs/gcr002.md: row %s is missing", name)
			}
		}
	}
	for name := range testNames(t) {
		for part := range strings.SplitSeq(strings.TrimPrefix(name, "Test"), "_") {
			if rowName.MatchString(part) && rows[part] == "" {
				t.Errorf("docs/gcr002.md: no row %s, which %s tests", part, name)
			}
		}
	}
}

// TestArchitectureDocNamesFilesThatExist keeps the file → duty tables true: a
// package is a heading "### folder", a file is a row.
func TestArchitectureDocNamesFilesThatExist(t *testing.T) {
	files, packages := goFiles(t), map[string]bool{}
	folder := ""
	for l := range strings.Lines(section(t, document(t, "ARCHITECTURE.md"), "Files")) {
		if h, ok := strings.CutPrefix(l, "### "); ok {
			folder = strings.TrimSpace(h)
			packages[folder] = true
			continue
		}
		for _, row := range tableRows(l) {
			if !strings.HasSuffix(row[0], ".go") {
				continue
			}
			for name := range strings.SplitSeq(row[0], ", ") {
				if _, ok := files[folder+"/"+name]; !ok {
					t.Errorf("ARCHITECTURE.md, Files: there is no %s/%s", folder, name)
				}
			}
		}
	}
	if len(packages) < 30 {
		t.Fatalf("ARCHITECTURE.md, Files has %d packages: the test no longer reads it", len(packages))
	}
}

// TestArchitectureDocDrawsTheDiagram keeps the import diagram as repo_test.go
// has it.
func TestArchitectureDocDrawsTheDiagram(t *testing.T) {
	got := map[string][]string{}
	for _, row := range tableRows(section(t, document(t, "ARCHITECTURE.md"), "Imports")) {
		if c := code(row[0]); c != "" {
			got[c] = nil
			for to := range strings.SplitSeq(row[1], ", ") {
				if c2 := code(to); c2 != "" {
					got[c] = append(got[c], c2)
				}
			}
		}
	}
	for from, to := range mayImport {
		if have, ok := got[from]; !ok || !slices.Equal(have, to) {
			t.Errorf("ARCHITECTURE.md, Imports: %s may import %v, not %v", from, to, have)
		}
	}
	if len(got) != len(mayImport) {
		t.Errorf("ARCHITECTURE.md, Imports has %d rows, the diagram %d", len(got), len(mayImport))
	}
}
