// Package yumen holds the tests of the repository's own shape: who may import
// whom, and that every package says what it is. ARCHITECTURE.md draws what this
// file keeps.
package yumen

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/yumen-zt/yumen/"

// mayImport is the import diagram. A key covers its sub-packages unless a
// longer key does; a value covers its sub-packages when it ends in "/...".
// A package may always import its own sub-packages and the packages below the
// same key.
var mayImport = map[string][]string{
	"cmd":   {"..."},
	"test":  {"..."},
	"bench": {"..."},

	"gateway":        {"gateway/listen", "proxy/...", "tunnel/...", "apps/...", "access/...", "ctlclient", "bpf/...", "wire", "crypto/...", "internal/..."},
	"gateway/listen": {"access/policy", "crypto/...", "internal/..."},
	"proxy":          {"access/...", "apps", "wire", "crypto/...", "internal/..."},
	"tunnel":         {"tunnel/mux", "tunnel/carrier", "tunnel/spa", "access/...", "apps", "wire", "crypto/...", "internal/..."},
	"tunnel/mux":     {"wire", "internal/..."},
	"tunnel/carrier": {"tunnel/mux", "wire", "crypto/...", "internal/..."},
	"agent":          {"tunnel/mux", "tunnel/carrier", "tunnel/spa", "ctlclient", "wire", "crypto/...", "internal/..."},
	"control":        {"access/policy", "wire", "crypto/...", "internal/..."},
	"access":         {"access/policy", "wire", "internal/..."},
	"access/policy":  {"wire", "internal/..."},
	"apps":           {"wire", "crypto/...", "internal/..."},
	"ctlclient":      {"wire", "crypto/...", "internal/..."},
	"bpf":            {"internal/reason", "internal/siphash"},
	"crypto":         {"internal/..."},
	"wire":           {},
	"internal":       {"wire"},
}

func TestImportsFollowTheDiagram(t *testing.T) {
	for file, imports := range goFiles(t) {
		from := path.Dir(file)
		rule, key := ruleFor(from)
		if key == "" {
			if from != "." {
				t.Errorf("%s: its folder is not in the import diagram", file)
			}
			continue
		}
		for _, to := range imports {
			if to == key || strings.HasPrefix(to, key+"/") && !hasOwnRule(to) || permitted(rule, to) {
				continue
			}
			if strings.HasSuffix(file, "_test.go") && testHelper(to) {
				continue
			}
			t.Errorf("%s imports %s: %s may import only %v", file, to, key, rule)
		}
	}
}

// testHelper reports whether any test may import pkg: the lab's certificates
// and in-memory helpers know nothing of the product's walks.
func testHelper(pkg string) bool {
	return pkg == "crypto/lab" || strings.HasPrefix(pkg, "crypto/") || strings.HasPrefix(pkg, "internal/")
}

func ruleFor(pkg string) (rule []string, key string) {
	for p := pkg; p != "." && p != "/"; p = path.Dir(p) {
		if r, ok := mayImport[p]; ok {
			return r, p
		}
	}
	return nil, ""
}

func hasOwnRule(pkg string) bool {
	_, ok := mayImport[pkg]
	return ok
}

func permitted(rule []string, pkg string) bool {
	return slices.ContainsFunc(rule, func(r string) bool {
		if r == "..." {
			return true
		}
		if base, all := strings.CutSuffix(r, "/..."); all {
			return pkg == base || strings.HasPrefix(pkg, base+"/")
		}
		return pkg == r
	})
}

func TestEveryPackageHasADoc(t *testing.T) {
	documented := map[string]bool{}
	for file := range goFiles(t) {
		dir := path.Dir(file)
		// Tests may hold the doc of a folder that has nothing else.
		if !strings.HasSuffix(file, "_test.go") || dir == "." || !hasPlainGo(t, dir) {
			documented[dir] = documented[dir] || hasDoc(t, file)
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no package documentation", dir)
		}
	}
}

func TestFilesStayReadable(t *testing.T) {
	const most = 600 // lines
	for file := range goFiles(t) {
		if strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, "_bpfel.go") {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), "\n"); n > most {
			t.Errorf("%s: %d lines, at most %d: split it by duty", file, n, most)
		}
	}
}

func hasPlainGo(t *testing.T, dir string) bool {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(names, func(n string) bool { return !strings.HasSuffix(n, "_test.go") })
}

func hasDoc(t *testing.T, file string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f.Doc != nil
}

// goFiles returns every Go file of the module with the module's packages that
// it imports, named by their folder.
func goFiles(t *testing.T) map[string][]string {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules" || p == "tools") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(p)
		files[name] = nil
		for _, imp := range f.Imports {
			target, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if own, ok := strings.CutPrefix(target, module); ok {
				files[name] = append(files[name], own)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files: the test no longer reads the tree", len(files))
	}
	return files
}
