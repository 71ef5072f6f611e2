//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

type options struct {
	rounds, mib, trips, idle, storm int
	only                            string
	vpn                             bool
}

func main() {
	var o options
	serveDir := flag.String("serve", "", "")
	driveDir := flag.String("drive", "", "")
	server := flag.String("server", serverAddr, "")
	warm := flag.Bool("warm", true, "")
	wg := flag.Bool("wireguard", false, "")
	names := flag.String("subjects", strings.Join(subjects, ","), "what to measure, of "+strings.Join(subjects, " "))
	flag.IntVar(&o.rounds, "rounds", 7, "rounds; each measures every subject once")
	flag.IntVar(&o.mib, "mib", 256, "MiB of a bulk measurement")
	flag.IntVar(&o.trips, "trips", 5000, "round trips of a measurement")
	flag.IntVar(&o.idle, "idle", 10_000, "idle tunnels")
	flag.IntVar(&o.storm, "storm", 1000, "agents of a restarted gateway")
	flag.StringVar(&o.only, "only", "", "streams, vpn, idle, storm, lossy or reports alone")
	flag.Parse()
	var err error
	switch {
	case *serveDir != "":
		err = serve(*serveDir)
	case *driveDir != "":
		err = drive(*driveDir, *server, strings.Split(*names, ","), o, *warm)
	case *wg:
		err = runWireGuard()
	default:
		err = run(o, strings.Split(*names, ","))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tunnel:", err)
		os.Exit(1)
	}
}

func run(o options, names []string) error {
	for _, n := range names {
		if !slices.Contains(subjects, n) {
			return fmt.Errorf("no subject %q", n)
		}
	}
	dir, clean, err := tempDir()
	if err != nil {
		return err
	}
	defer clean()
	if err := makeMaterial(dir); err != nil {
		return err
	}
	t := newTable()
	wants := func(part string) bool { return o.only == "" || o.only == part }
	if wants("streams") || wants("vpn") {
		n, err := newNetwork()
		if err != nil {
			return err
		}
		defer n.close()
		if wants("streams") {
			err = streams(n, dir, names, o, t)
		}
		if err == nil && wants("vpn") {
			err = vpns(n, dir, o, t)
		}
		if err != nil {
			return err
		}
	}
	if wants("idle") {
		if err := idle(o.idle, t); err != nil {
			return err
		}
	}
	if wants("storm") {
		if err := storm(o.storm, t); err != nil {
			return err
		}
	}
	if wants("lossy") {
		if err := lossy(o.rounds, t); err != nil {
			return err
		}
	}
	if wants("reports") {
		if err := reports(t); err != nil {
			return err
		}
	}
	return t.print(os.Stdout)
}

// streams runs both ends in their namespaces and collects what the near one
// says.
func streams(n *network, dir string, names []string, o options, t *table) error {
	far := n.command(farEnd, 0, self(), "-serve", dir)
	in, err := far.StdinPipe()
	if err != nil {
		return err
	}
	if err := started(far); err != nil {
		return fmt.Errorf("start far end: %w", err)
	}
	defer func() { in.Close(); _ = far.Wait() }()
	near := n.command(nearEnd, 1, self(), "-drive", dir, "-subjects", strings.Join(names, ","),
		"-rounds", fmt.Sprint(o.rounds), "-mib", fmt.Sprint(o.mib), "-trips", fmt.Sprint(o.trips))
	out, err := near.StdoutPipe()
	if err != nil {
		return err
	}
	if err := near.Start(); err != nil {
		return err
	}
	dec := json.NewDecoder(out)
	for {
		var r result
		if err = dec.Decode(&r); err != nil {
			break
		}
		t.add(&r)
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, near.Wait())
}

func self() string {
	s, err := os.Executable()
	if err != nil {
		panic(err) // on Linux there is /proc
	}
	return s
}

// started starts c and waits for the line "ready".
func started(c *exec.Cmd) error {
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		return fmt.Errorf("it said %q: %w", line, err)
	}
	return nil
}
