package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/internal/reason"
)

// The numbers of the C header are those of Go, and a drop's number is its
// reason's.
func TestVerdictsAreThoseOfTheHeader(t *testing.T) {
	src, err := os.ReadFile("src/guard.h")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[Verdict]string{}
	for _, m := range regexp.MustCompile(`(?m)^\tV_([A-Z_]+) = (\d+),`).FindAllStringSubmatch(string(src), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if m[1] != "NONE" && m[1] != "MAX" {
			seen[Verdict(n)] = strings.ToLower(m[1])
		}
	}
	if len(seen) != 33 {
		t.Fatalf("%d verdicts in the header, 33 expected", len(seen))
	}
	for v, name := range seen {
		want := name
		if v >= DropMalformed {
			want = "guard_" + name
			if v.Reason() != reason.Reason(900+int(v)-31) {
				t.Errorf("%s: reason %d", name, v.Reason())
			}
		}
		if v.String() != want {
			t.Errorf("%s (%d) is %q in Go", name, v, v)
		}
	}
}

// The committed object is what the source gives: the same bytes wherever it is
// made.
func TestObjectIsReproducible(t *testing.T) {
	if _, err := exec.LookPath("clang-14"); err != nil {
		t.Skip("NOT TESTED: clang-14 is not here")
	}
	gen, err := os.ReadFile("generate.go")
	if err != nil {
		t.Fatal(err)
	}
	_, words, _ := strings.Cut(string(gen), "//go:generate go ")
	args := strings.Fields(words)
	at := slices.Index(args, "bpf2go") + 1
	dir := t.TempDir()
	args = slices.Insert(args, at, "-output-dir", dir, "-go-package", "bpf")
	if b, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v: %s", args, err, b)
	}
	got, err := os.ReadFile(filepath.Join(dir, "guard_bpfel.o"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("guard_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the object differs from the committed one (%d and %d bytes): run make generate with clang-14", len(got), len(want))
	}
}

// compile builds the source in dir as generate.go does.
func compile(t testing.TB, clang, dir string) string {
	t.Helper()
	out := filepath.Join(dir, "guard.o")
	cmd := exec.Command(clang, "-O2", "-g", "-mcpu=v3", "-Iinclude", "-target", "bpfel", "-c", "guard.bpf.c", "-o", out)
	cmd.Dir = dir
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}
