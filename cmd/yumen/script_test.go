package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/yumen-zt/yumen/crypto/selftest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"yumen": func() { os.Exit(run(context.Background(), os.Args[1:], selftest.Run)) },
		// As if the machine's SM4 were broken.
		"yumen-broken": func() {
			table := selftest.Tests(rand.Reader)
			for i := range table {
				if table[i].Name == "SM4-GCM" {
					table[i].Run = func() error { return errors.New("planted") }
				}
			}
			os.Exit(run(context.Background(), os.Args[1:], func() error { return selftest.RunTable(table) }))
		},
	})
}

// TestScripts runs the command line as a user does, by testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": func(ts *testscript.TestScript, neg bool, args []string) { // exits CODE command ...
				err := ts.Exec(args[1], args[2:]...)
				code := "0"
				if e, ok := err.(interface{ ExitCode() int }); ok {
					code = string(rune('0' + e.ExitCode()))
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if (code == args[0]) == neg {
					ts.Fatalf("exit code %s, want %s", code, args[0])
				}
			},
			"json": func(ts *testscript.TestScript, _ bool, args []string) { // json FILE
				var v any
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
			},
		},
	})
}
