// Package cross checks that the program compiles for every system that it is
// for, without compiling it there: what the compiler would say of names and
// types, it says from the source in seconds. `make cross` builds the binaries.
package cross

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	module  = "github.com/yumen-zt/yumen"
	program = module + "/cmd/yumen"
)

// listed is what `go list` says of a package.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	ImportMap  map[string]string
	Standard   bool
	Error      *struct{ Err string }
}

// sources parses each file once for all systems.
type sources struct {
	set *token.FileSet
	mu  sync.Mutex
	all map[string]func() (*ast.File, error) // guarded by mu
}

func (s *sources) parse(file string) (*ast.File, error) {
	s.mu.Lock()
	f := s.all[file]
	if f == nil {
		f = sync.OnceValues(func() (*ast.File, error) {
			return parser.ParseFile(s.set, file, nil, parser.SkipObjectResolution)
		})
		s.all[file] = f
	}
	s.mu.Unlock()
	return f()
}

// loaded are the packages of one system; it imports from itself.
type loaded map[string]*types.Package

type importer struct {
	done loaded
	of   map[string]string // of the package that imports: vendored paths
}

func (i importer) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	if to, ok := i.of[path]; ok {
		path = to
	}
	if p := i.done[path]; p != nil {
		return p, nil
	}
	return nil, errors.New("not listed: " + path)
}

func TestB24_CompilesOnEverySystem(t *testing.T) {
	src := &sources{set: token.NewFileSet(), all: map[string]func() (*ast.File, error){}}
	systems := []string{"linux/arm64", "windows/amd64", "darwin/arm64"}
	if os.Getenv("YUMEN_LONG") == "1" {
		systems = append(systems, "windows/arm64", "darwin/amd64")
	}
	for _, system := range systems {
		t.Run(system, func(t *testing.T) {
			t.Parallel()
			goos, goarch, _ := strings.Cut(system, "/")
			c := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Standard,Error", program)
			c.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
			raw, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			done := loaded{}
			for dec := json.NewDecoder(bytes.NewReader(raw)); ; {
				var p listed
				if err := dec.Decode(&p); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				if p.Error != nil {
					t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
				}
				check(t, src, done, &p, types.SizesFor("gc", goarch))
			}
			if done[program] == nil {
				t.Error("the program was not checked")
			}
		})
	}
}

// check types one package: our own with the bodies of its functions, the others
// by their declarations.
func check(t *testing.T, src *sources, done loaded, p *listed, sizes types.Sizes) {
	if p.ImportPath == "unsafe" {
		return
	}
	own := strings.HasPrefix(p.ImportPath, module)
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := src.parse(filepath.Join(p.Dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		files = append(files, f)
	}
	cfg := types.Config{
		Importer: importer{done, p.ImportMap}, Sizes: sizes, IgnoreFuncBodies: !own, FakeImportC: true,
		Error: func(err error) {
			if own {
				t.Error(err)
			}
		},
	}
	done[p.ImportPath], _ = cfg.Check(p.ImportPath, src.set, files, nil) // its errors went to Error
}
