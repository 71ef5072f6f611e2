//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	farEnd  = "far"
	nearEnd = "near"
)

// network is two network namespaces with a veth pair between them.
type network struct{ prefix string }

func newNetwork() (*network, error) {
	n := &network{prefix: fmt.Sprintf("ymb%d", os.Getpid())}
	far, near := n.prefix+farEnd, n.prefix+nearEnd
	for _, line := range []string{
		"ip netns add " + far,
		"ip netns add " + near,
		"ip -n " + far + " link add v0 type veth peer name v1 netns " + near,
		"ip -n " + far + " addr add " + serverAddr + "/24 dev v0",
		"ip -n " + near + " addr add " + clientAddr + "/24 dev v1",
		"ip -n " + far + " link set v0 up", "ip -n " + near + " link set v1 up",
		"ip -n " + far + " link set lo up", "ip -n " + near + " link set lo up",
	} {
		if err := sh(line); err != nil {
			n.close()
			return nil, fmt.Errorf("make network namespaces: %w (root is needed)", err)
		}
	}
	return n, nil
}

func (n *network) close() {
	for _, end := range []string{farEnd, nearEnd} {
		_ = sh("ip netns del " + n.prefix + end) // absent after a failed start
	}
}

func sh(line string) error {
	words := strings.Fields(line)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// command is a program at one end, on one core.
func (n *network) command(end string, core int, words ...string) *exec.Cmd {
	c := exec.Command("ip", append([]string{"netns", "exec", n.prefix + end, "taskset", "-c", fmt.Sprint(core)}, words...)...)
	c.Stderr = os.Stderr
	return c
}
