package gateway

import (
	"cmp"
	"os"
	"path/filepath"

	"github.com/yumen-zt/yumen/internal/privilege"
)

// folders are those that a gateway changes something in while it runs, and the
// file that programs which it starts open for writing.
func (c *Config) folders() []string {
	all := []string{c.StateDir, c.Keys.Dir, c.Outbox.Dir, c.Audit.Dir, os.DevNull}
	for _, file := range []string{c.Admin.Socket, c.Audit.Rights.Socket, c.Audit.File, c.AccessLog.File, c.Proxy.AssertionKeyFile} {
		if file != "" {
			all = append(all, filepath.Dir(file))
		}
	}
	if c.Login != nil {
		all = append(all, filepath.Dir(c.Login.CookieKeyFile))
	}
	if c.Guard != nil {
		all = append(all, cmp.Or(c.Guard.PinDir, "/sys/fs/bpf"))
	}
	return all
}

// Privileges is what the gateway still needs once New has returned.
func (g *Gateway) Privileges() (keep privilege.Config) {
	keep.Write = g.site.Load().cfg.folders()
	if g.guard == nil || g.guard.tier == nil {
		return keep
	}
	if now, _ := running(g.guard.tier); nameOf(now) == tierNftables {
		keep.Keep, keep.Exec = []int{privilege.NetAdmin}, true // for netlink, and the program nft
		return keep
	}
	// Kernels before 6.0 may ask for a capability at every call, not only when
	// programs and maps are made.
	if err := privilege.WithoutCapabilities(func() error { _, err := g.guard.tier.Counters(); return err }); err != nil {
		keep.Keep = []int{privilege.BPF}
	}
	keep.BPF = true
	return keep
}
