package main

import (
	"strings"
	"testing"
)

func TestChaosSetNeedsOneFaultOrAScript(t *testing.T) {
	for _, args := range [][]string{{}, {"drop", "--script", "x"}} {
		cmd := controlChaosCmd(&controlTarget{socket: "/nonexistent"})
		cmd.SetArgs(append([]string{"set"}, args...))
		cmd.SetIn(strings.NewReader(""))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "give one fault") {
			t.Errorf("set %q: %v", args, err)
		}
	}
}
