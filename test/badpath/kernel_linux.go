package badpath

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// InNamespace makes cmd run in a network namespace of its own. That needs root.
func InNamespace(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
}

// Kernel makes packets vanish on the loopback of a namespace, by nftables.
type Kernel struct{ port int }

// Up brings up the loopback of the namespace that the process runs in, which
// must be its own.
func Up() error {
	if links, err := os.ReadFile("/proc/net/route"); err != nil || strings.Count(string(links), "\n") > 1 {
		return errors.Join(errors.New("prepare namespace: this one has routes (it must be the program's own)"), err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("bring up loopback: %w: %s", err, out)
	}
	return nil
}

// NewKernel prepares the namespace that the process runs in; see [Up]. What
// vanishes are packets from and to the TCP port, on their way in: their sender's
// kernel knows nothing of it.
func NewKernel(port int) (*Kernel, error) {
	if err := Up(); err != nil {
		return nil, err
	}
	return &Kernel{port}, nft(`
table inet badpath {
	set dead { type inet_service . inet_service; }
	set cut { type inet_service; }
	chain in {
		type filter hook input priority 0;
		tcp sport . tcp dport @dead counter drop
		tcp sport @cut drop
		tcp dport @cut drop
	}
}`)
}

// Vanish makes the packets of every connection to the port that is open now
// vanish, in both directions, for ever and silently: by 5-tuple, for both
// addresses are the loopback's. New ones are sound. With match only those whose
// port at the other end it accepts. It returns how many there were.
func (k *Kernel) Vanish(match func(port int) bool) (n int, err error) {
	ports, err := k.Open()
	if err != nil {
		return 0, err
	}
	var pairs []string
	for _, p := range ports {
		if match == nil || match(p) {
			pairs = append(pairs, fmt.Sprintf("%d . %d, %d . %d", p, k.port, k.port, p))
		}
	}
	if len(pairs) == 0 {
		return 0, nil
	}
	return len(pairs), nft("add element inet badpath dead { " + strings.Join(pairs, ", ") + " }")
}

// Cut makes every packet from and to the port vanish until Mend.
func (k *Kernel) Cut() error { return nft(fmt.Sprintf("add element inet badpath cut { %d }", k.port)) }

// Mend ends Cut.
func (k *Kernel) Mend() error {
	return nft(fmt.Sprintf("delete element inet badpath cut { %d }", k.port))
}

// Dropped returns how many packets of connections that vanished were dropped.
func (k *Kernel) Dropped() (int, error) {
	out, err := exec.Command("nft", "list", "chain", "inet", "badpath", "in").Output()
	if err != nil {
		return 0, fmt.Errorf("list rules: %w", err)
	}
	_, rest, _ := strings.Cut(string(out), "counter packets ")
	word, _, _ := strings.Cut(rest, " ")
	return strconv.Atoi(word)
}

// Open returns the ports of the clients that are connected to the port.
func (k *Kernel) Open() (ports []int, err error) {
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		in := bufio.NewScanner(f)
		for in.Scan() {
			w := strings.Fields(in.Text())
			if len(w) < 4 || w[3] != "01" { // established
				continue
			}
			local, remote := port(w[1]), port(w[2])
			if remote == k.port {
				ports = append(ports, local)
			}
		}
		f.Close()
		if err := in.Err(); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

func port(addr string) int {
	_, hex, _ := strings.Cut(addr, ":")
	n, err := strconv.ParseInt(hex, 16, 32)
	if err != nil {
		return -1
	}
	return int(n)
}

func nft(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set rules: %w: %s (nftables is needed)", err, out)
	}
	return nil
}
