package yumen

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestGCR002_M68_EveryAlertIsRaisedAndTested holds the catalogue honest: each
// code is raised by some part, and a test of a part fires it.
func TestGCR002_M68_EveryAlertIsRaisedAndTested(t *testing.T) {
	catalogue, err := os.ReadFile("internal/alert/catalogue.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]string{} // name -> code
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+)\s+Code = "([0-9.]+)"`).FindAllStringSubmatch(string(catalogue), -1) {
		codes[m[1]] = m[2]
	}
	if len(codes) < 40 {
		t.Fatalf("%d codes found", len(codes))
	}
	raised, tested := map[string]bool{}, map[string]bool{}
	word := regexp.MustCompile(`\balert\.(\w+)`)
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasPrefix(path, "internal/alert/") || strings.HasPrefix(path, "bench/") {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, m := range word.FindAllStringSubmatch(string(raw), -1) {
			if strings.HasSuffix(path, "_test.go") {
				tested[m[1]] = true
			} else {
				raised[m[1]] = true
			}
		}
		if strings.HasSuffix(path, "_test.go") {
			for name, code := range codes {
				tested[name] = tested[name] || strings.Contains(string(raw), `"`+code+`"`) || strings.Contains(string(raw), "`"+code+"`")
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, code := range codes {
		if !raised[name] {
			t.Errorf("%s (%s) is raised nowhere", code, name)
		}
		if !tested[name] {
			t.Errorf("%s (%s) is fired by no test", code, name)
		}
	}
}
