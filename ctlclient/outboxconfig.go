package ctlclient

import (
	"errors"
	"fmt"
)

// OutboxConfig is the outbox's part of a configuration file. The zero value of
// a field selects its default.
type OutboxConfig struct {
	Dir          string     `yaml:"dir"`           // default state_dir/outbox
	MaxBytes     OutboxCaps `yaml:"max_bytes"`     // on disk, a class; beyond it the oldest segment goes, and a gap says so
	ReserveBytes int64      `yaml:"reserve_bytes"` // kept for alerts and identity on a full disk; -1: none
	SegmentBytes int64      `yaml:"segment_bytes"` // of one file; at most an eighth of the class's cap
}

// OutboxCaps bound each class.
type OutboxCaps struct {
	Alert    int64 `yaml:"alert"`
	Identity int64 `yaml:"identity"`
	Audit    int64 `yaml:"audit"`
	Status   int64 `yaml:"status"`
}

// Validate returns every fault of c, each named by its YAML path below prefix.
func (c *OutboxConfig) Validate(prefix string) error {
	var errs []error
	fault := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf(prefix+path+": "+format, args...))
	}
	const least = 64 << 10
	m := &c.MaxBytes
	for _, one := range []struct {
		name string
		v    int64
	}{{"alert", m.Alert}, {"identity", m.Identity}, {"audit", m.Audit}, {"status", m.Status}} {
		if one.v != 0 && one.v < least {
			fault("max_bytes."+one.name, "%d is less than %d (leave it out for the default)", one.v, least)
		}
	}
	if c.ReserveBytes < -1 {
		fault("reserve_bytes", "%d (give bytes, or -1 for none)", c.ReserveBytes)
	}
	if c.SegmentBytes != 0 && (c.SegmentBytes < 8<<10 || c.SegmentBytes > 1<<30) {
		fault("segment_bytes", "%d is not between 8192 and 1073741824", c.SegmentBytes)
	}
	return errors.Join(errs...)
}

// Apply puts what c sets into d.
func (c *OutboxConfig) Apply(d *DurableConfig) {
	if c.Dir != "" {
		d.Dir = c.Dir
	}
	for k, v := range map[Class]int64{ClassAlert: c.MaxBytes.Alert, ClassIdentity: c.MaxBytes.Identity, ClassAudit: c.MaxBytes.Audit, ClassStatus: c.MaxBytes.Status} {
		if v != 0 {
			d.Caps[k] = v
		}
	}
	if c.ReserveBytes != 0 {
		d.Reserve = c.ReserveBytes
	}
	d.SegmentBytes = c.SegmentBytes
}
