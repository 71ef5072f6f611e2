package diagnose

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"golang.org/x/sys/cpu"

	"github.com/yumen-zt/yumen/crypto/selftest"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// CryptoReport is what the cryptography of this machine does.
type CryptoReport struct {
	Tests    []selftest.Result `json:"tests"`
	Arch     string            `json:"arch"`
	Features []Feature         `json:"cpu"`
	Speeds   []Speed           `json:"speeds"` // of one core; information, not a promise
}

// Feature is an instruction set that makes the algorithms faster.
type Feature struct {
	Name string `json:"name"`
	Has  bool   `json:"has"`
	For  string `json:"for"`
}

// Speed is a measured rate.
type Speed struct {
	Name string  `json:"name"`
	Rate float64 `json:"rate"`
	Unit string  `json:"unit"`
}

// Crypto runs the self-tests and measures for half a second.
func Crypto() (*CryptoReport, error) {
	speeds, err := measure(100 * time.Millisecond)
	return &CryptoReport{Tests: selftest.Results(), Arch: runtime.GOARCH, Features: features(), Speeds: speeds}, err
}

// Err returns an error when a test failed.
func (r *CryptoReport) Err() error {
	n := 0
	for _, t := range r.Tests {
		if t.Fault != "" {
			n++
		}
	}
	if n > 0 {
		return fmt.Errorf("check cryptography: %d of %d tests failed (use no keys on this machine; %d 项自检失败)", n, len(r.Tests), n)
	}
	return nil
}

// Write prints the report for people.
func (r *CryptoReport) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, t := range r.Tests {
		state := "ok"
		if t.Fault != "" {
			state = "FAILED " + clean(t.Fault)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", t.Name, state, t.Took.Round(time.Microsecond), t.Source, t.Chinese)
	}
	for _, f := range r.Features {
		has := "no"
		if f.Has {
			has = "yes"
		}
		fmt.Fprintf(tw, "CPU %s\t%s\t\t%s\t\n", f.Name, has, f.For)
	}
	for _, s := range r.Speeds {
		fmt.Fprintf(tw, "%s\t%.0f %s\t\t\t\n", s.Name, s.Rate, s.Unit)
	}
	return tw.Flush()
}

// features names what the primitives look for on this architecture.
func features() []Feature {
	switch runtime.GOARCH {
	case "amd64":
		return []Feature{
			{"AES-NI", cpu.X86.HasAES, "SM4, four or eight blocks at a time"},
			{"AVX2", cpu.X86.HasAVX2, "SM4 eight blocks at a time, SM3"},
			{"GFNI", hasGFNI(), "SM4, twice as fast as by AES-NI; off by DISABLE_GFNI=1"},
			{"PCLMULQDQ", cpu.X86.HasPCLMULQDQ, "the tag of SM4-GCM"},
			{"BMI2", cpu.X86.HasBMI2, "SM3, SM2"},
			{"ADX", cpu.X86.HasADX, "SM2"},
		}
	case "arm64":
		return []Feature{
			{"SM4", cpu.ARM64.HasSM4, "SM4 by its own instructions"},
			{"SM3", cpu.ARM64.HasSM3, "SM3 by its own instructions"},
			{"AES", cpu.ARM64.HasAES, "SM4 where its own instructions are missing"},
			{"PMULL", cpu.ARM64.HasPMULL, "the tag of SM4-GCM"},
		}
	}
	return nil
}

// hasGFNI asks the kernel: x/sys/cpu knows the flag with AVX-512 only.
func hasGFNI() bool {
	if os.Getenv("DISABLE_GFNI") == "1" {
		return false
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	return cpu.X86.HasAVX512GFNI || err == nil && bytes.Contains(info, []byte(" gfni"))
}

// measure spends each on three primitives. The rate is that of the best slice
// of the time: other work on the machine slows the others down.
func measure(each time.Duration) ([]Speed, error) {
	aead, err := sm4gcm.New(make([]byte, sm4gcm.KeySize))
	if err != nil {
		return nil, err
	}
	key, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	msg := []byte("how fast")
	sig, err := key.Sign(rand.Reader, msg, sm2.DefaultSM2SignerOpts)
	if err != nil {
		return nil, err
	}
	const record = 16 << 10
	text, out, nonce := make([]byte, record), make([]byte, 0, record+sm4gcm.Overhead), make([]byte, sm4gcm.NonceSize)
	var speeds []Speed
	for _, m := range []struct {
		name, unit string
		scale      float64 // of one call, in units
		f          func() bool
	}{
		{"SM4-GCM, 16 KiB records", "MB/s", record / 1e6, func() bool { aead.Seal(out, nonce, text, nil); return true }},
		{"SM2 signatures", "/s", 1, func() bool { _, err := key.Sign(rand.Reader, msg, sm2.DefaultSM2SignerOpts); return err == nil }},
		{"SM2 verifications", "/s", 1, func() bool { return sm2.VerifyASN1WithSM2(&key.PublicKey, nil, msg, sig) }},
	} {
		const slice = 16 // calls
		best := each
		for end := time.Now().Add(each); time.Now().Before(end); {
			start := time.Now()
			for range slice {
				if !m.f() {
					return speeds, fmt.Errorf("measure %s: it failed", m.name)
				}
			}
			best = min(best, time.Since(start))
		}
		speeds = append(speeds, Speed{m.name, slice * m.scale / best.Seconds(), m.unit})
	}
	return speeds, nil
}
