package control

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/wire"
)

// PostureConfig says how many points of 100 a device gets for what its agent
// reports; policies ask for the sum (`posture >=80`). What is unknown gives
// none. What an operator sets by `yumen control device facts` takes its place.
type PostureConfig struct {
	DiskEncrypted *int `yaml:"disk_encrypted"` // default 40
	Firewall      *int `yaml:"firewall"`       // default 30
	System        *int `yaml:"system"`         // the system is known, and not older than its minimum; default 30
	// Minimum is the oldest good version by system: of windows and darwin the
	// system's, of linux the kernel's. Default: none.
	Minimum map[string]string `yaml:"minimum"`
}

func (c *PostureConfig) defaults() {
	for dst, points := range map[**int]int{&c.DiskEncrypted: 40, &c.Firewall: 30, &c.System: 30} {
		if *dst == nil {
			*dst = &points
		}
	}
}

func (c *PostureConfig) validate(fault func(path, format string, args ...any)) {
	sum := 0
	for path, v := range map[string]*int{"posture.disk_encrypted": c.DiskEncrypted, "posture.firewall": c.Firewall, "posture.system": c.System} {
		if v == nil {
			continue
		}
		if sum += *v; *v < 0 || *v > 100 {
			fault(path, "%d is outside 0..100", *v)
		}
	}
	if sum > 100 {
		fault("posture", "the points add up to %d, at most 100", sum)
	}
	for _, system := range slices.Sorted(maps.Keys(c.Minimum)) {
		if len(version(c.Minimum[system])) == 0 {
			fault(fmt.Sprintf("posture.minimum.%s", system), "%q is no version (for example 5.10)", c.Minimum[system])
		}
	}
}

// score returns the points of p.
func (c *PostureConfig) score(p *wire.Posture) (points int) {
	if p.DiskEncrypted == wire.PostureYes {
		points += *c.DiskEncrypted
	}
	if p.Firewall == wire.PostureYes {
		points += *c.Firewall
	}
	has := p.Version
	if p.OS == "linux" {
		has = p.Kernel
	}
	if v := version(has); len(v) > 0 && slices.Compare(v, version(c.Minimum[p.OS])) >= 0 {
		points += *c.System
	}
	return min(points, 100)
}

// version reads the numbers that a version begins with, as 6.1.0-13-amd64 does.
func version(s string) (numbers []int) {
	for {
		digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
		n, err := strconv.Atoi(s[:digits])
		if err != nil {
			return numbers
		}
		numbers = append(numbers, n)
		if s = s[digits:]; !strings.HasPrefix(s, ".") {
			return numbers
		}
		s = s[1:]
	}
}
