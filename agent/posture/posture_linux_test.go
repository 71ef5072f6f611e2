package posture

import (
	"testing"
	"testing/fstest"
)

func TestLook(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	const mounts = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/dm-1 rw\n30 22 0:25 / /proc rw - proc proc rw\n"
	for name, tc := range map[string]struct {
		fs   fstest.MapFS
		want Report
	}{
		"LVM on LUKS, ufw": {fstest.MapFS{
			"etc/os-release":            file("NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\n"),
			"proc/sys/kernel/osrelease": file("6.1.0\n"), "proc/self/mountinfo": file(mounts),
			"sys/dev/block/254:1/dm/uuid": file("LVM-x"), "sys/dev/block/254:1/slaves/dm-0/dm/uuid": file("CRYPT-LUKS2-x"),
			"etc/ufw/ufw.conf": file("# on\nENABLED=yes\n"),
		}, Report{Name: "Debian GNU/Linux 12", Version: "12", Kernel: "6.1.0", DiskEncrypted: Yes, Firewall: Yes}},
		"one of two disks is not encrypted": {fstest.MapFS{
			"proc/self/mountinfo": file(mounts), "sys/dev/block/254:1/slaves/a/dm/uuid": file("CRYPT-x"), "sys/dev/block/254:1/slaves/b/size": file("1"),
		}, Report{DiskEncrypted: No, Firewall: Unknown}},
		"plain disk":             {fstest.MapFS{"proc/self/mountinfo": file(mounts), "sys/dev/block/254:1/size": file("1")}, Report{DiskEncrypted: No, Firewall: Unknown}},
		"a container's overlay":  {fstest.MapFS{"proc/self/mountinfo": file("1 0 0:44 / / rw - overlay overlay rw\n")}, Report{DiskEncrypted: Unknown, Firewall: Unknown}},
		"nothing can be read":    {fstest.MapFS{}, Report{DiskEncrypted: Unknown, Firewall: Unknown}},
		"firewalld":              {fstest.MapFS{"run/firewalld/x": file("")}, Report{DiskEncrypted: Unknown, Firewall: Yes}},
		"ufw is installed, idle": {fstest.MapFS{"etc/ufw/ufw.conf": file("ENABLED=no\n")}, Report{DiskEncrypted: Unknown, Firewall: Unknown}},
	} {
		got := Look(system(tc.fs)...)
		tc.want.OS, tc.want.Arch = got.OS, got.Arch
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
	if r := Look(); r.OS != "linux" || r.Kernel == "" {
		t.Errorf("this system: %+v", r)
	}
}
