package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/yumen-zt/yumen/test/badpath"
)

// roleVar says that this program was started by itself, and what for: to run a
// cell, or to be the load of one.
const roleVar = "YUMEN_BUDGET_ROLE"

// options choose a run of one cell.
type options struct {
	Cell  string
	N     int     // samples of each link
	Rate  float64 // alerts a second of each link
	Quick bool    // short forms of what surrounds the cell, for tests
}

// inRole does what this process was started for by another of its kind. It
// reports false when there was none.
func inRole() bool {
	var err error
	switch os.Getenv(roleVar) {
	case "":
		return false
	case "cell":
		err = beCell()
	case "load":
		err = beLoad()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "budget:", err)
		os.Exit(1)
	}
	return true
}

func ownProgram(role string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// isolated runs a cell in a process of its own, and in a network namespace of
// its own if the cell needs one.
func isolated(o options) (*result, error) {
	c, err := cellOf(o.Cell)
	if err != nil {
		return nil, err
	}
	cmd, err := ownProgram("cell")
	if err != nil {
		return nil, err
	}
	if c.ns {
		badpath.InNamespace(cmd)
	}
	in, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(in), &out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run cell %s: %w", o.Cell, err)
	}
	r := &result{}
	return r, json.Unmarshal(out.Bytes(), r)
}

func beCell() error {
	var o options
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	r, err := measure(o)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// loadProcess is the process that loads a cell.
type loadProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startLoad starts p and returns when it runs at its rate.
func startLoad(p plan) (*loadProcess, error) {
	cmd, err := ownProgram("load")
	if err != nil {
		return nil, err
	}
	l := &loadProcess{cmd: cmd}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	l.out = bufio.NewReader(out)
	if l.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, err = l.in.Write(append(raw, '\n'))
	if err == nil {
		_, err = l.out.ReadString('\n')
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start load: %w", err), l.in.Close(), cmd.Wait())
	}
	return l, nil
}

// stop ends the load and returns what it has done.
func (l *loadProcess) stop() (done loadDone, err error) {
	if l == nil {
		return done, nil
	}
	overdue := time.AfterFunc(time.Minute, func() { l.cmd.Process.Kill() })
	defer overdue.Stop()
	err = l.in.Close()
	if e := json.NewDecoder(l.out).Decode(&done); err == nil {
		err = e
	}
	return done, errors.Join(err, l.cmd.Wait())
}
