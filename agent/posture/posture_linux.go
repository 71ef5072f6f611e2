package posture

import (
	"io/fs"
	"strings"
)

// system returns the probes of Linux, which read files of root.
func system(root fs.FS) []Probe {
	return []Probe{release{root}, disk{root}, firewall{root}}
}

// release reads os-release(5) and the kernel's version.
type release struct{ root fs.FS }

// Look implements [Probe].
func (p release) Look(r *Report) {
	for line := range strings.Lines(read(p.root, "etc/os-release")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "PRETTY_NAME":
			r.Name = value
		case "VERSION_ID":
			r.Version = value
		}
	}
	r.Kernel = strings.TrimSpace(read(p.root, "proc/sys/kernel/osrelease"))
}

// disk looks whether the device under / stands on dm-crypt.
type disk struct{ root fs.FS }

// Look implements [Probe].
func (p disk) Look(r *Report) {
	for line := range strings.Lines(read(p.root, "proc/self/mountinfo")) {
		f := strings.Fields(line)
		if len(f) > 4 && f[4] == "/" {
			r.DiskEncrypted = p.crypt("sys/dev/block/"+f[2], 8)
		}
	}
}

// crypt reports whether a block device is one of dm-crypt, or every device
// below it is.
func (p disk) crypt(dir string, depth int) Answer {
	if _, err := fs.Stat(p.root, dir); err != nil || depth == 0 {
		return Unknown // no block device: an overlay, a network file system
	}
	if strings.HasPrefix(read(p.root, dir+"/dm/uuid"), "CRYPT-") {
		return Yes
	}
	below, err := fs.ReadDir(p.root, dir+"/slaves")
	if err != nil || len(below) == 0 {
		return No
	}
	out := Yes
	for _, d := range below {
		if got := p.crypt(dir+"/slaves/"+d.Name(), depth-1); got != Yes {
			out = got
		}
	}
	return out
}

// firewall looks for the services that set one up. The rules themselves are
// for root alone to see, so that there is no No.
type firewall struct{ root fs.FS }

// Look implements [Probe].
func (p firewall) Look(r *Report) {
	for line := range strings.Lines(read(p.root, "etc/ufw/ufw.conf")) {
		if strings.EqualFold(strings.TrimSpace(line), "ENABLED=yes") {
			r.Firewall = Yes
		}
	}
	for _, sign := range []string{"run/firewalld", "etc/systemd/system/sysinit.target.wants/nftables.service"} {
		if _, err := fs.Stat(p.root, sign); err == nil {
			r.Firewall = Yes
		}
	}
}
