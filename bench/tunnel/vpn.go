//go:build linux

package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// vpn is a tunnel of packets between the two ends, and the addresses inside it.
type vpn struct {
	name     string
	far      string                                     // address of the far end inside
	commands func(n *network) (a, b *exec.Cmd, _ error) // of the far and the near end
	address  func(n *network) error                     // once both run; nil: they do it themselves
}

// vpns measures a TCP stream through OpenVPN and through wireguard-go: the
// programs of the stream and of the VPN share their end's core.
func vpns(n *network, dir string, o options, t *table) error {
	for _, v := range []vpn{openVPN(dir), wireGuard()} {
		if err := v.measure(n, dir, o, t); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func (v *vpn) measure(n *network, dir string, o options, t *table) error {
	a, b, err := v.commands(n)
	if err != nil {
		return err
	}
	for _, c := range []*exec.Cmd{a, b} {
		if err := c.Start(); err != nil {
			return err
		}
		defer func() { _ = c.Process.Kill(); _ = c.Wait() }() // it ends by no other way
	}
	if v.address != nil {
		if err := v.address(n); err != nil {
			return err
		}
	}
	far := n.command(farEnd, 0, self(), "-serve", dir)
	in, err := far.StdinPipe()
	if err != nil {
		return err
	}
	if err := started(far); err != nil {
		return err
	}
	defer func() { in.Close(); _ = far.Wait() }()
	if err := reach(n, v.far); err != nil {
		return err
	}
	for range o.rounds {
		before := [2]float64{processCPU(a), processCPU(b)}
		near := n.command(nearEnd, 1, self(), "-drive", dir, "-server", v.far, "-subjects", "tcp", "-warm=false",
			"-rounds", "1", "-mib", fmt.Sprint(o.mib/4), "-trips", fmt.Sprint(o.trips/4))
		out, err := near.Output()
		if err != nil {
			return err
		}
		after := [2]float64{processCPU(a), processCPU(b)}
		dec := json.NewDecoder(strings.NewReader(string(out)))
		for {
			var r result
			if err := dec.Decode(&r); err == io.EOF {
				break
			} else if err != nil {
				return err
			}
			r.Subject = v.name
			r.TX, r.RX = r.TX+after[1]-before[1], r.RX+after[0]-before[0]
			t.add(&r)
		}
	}
	return nil
}

// reach waits until the far end answers inside the VPN.
func reach(n *network, addr string) error {
	var err error
	for range 60 {
		if err = sh(fmt.Sprintf("ip netns exec %s ping -c 1 -W 1 %s", n.prefix+nearEnd, addr)); err == nil {
			return nil
		}
		time.Sleep(250 * time.Millisecond)
	}
	return err
}

// processCPU returns the CPU seconds of c's process and what it has become: the
// wrappers before it exec.
func processCPU(c *exec.Cmd) float64 { return pidCPU(c.Process.Pid) }

func pidCPU(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest) // from field 3 on; utime and stime are 14 and 15
	u, _ := strconv.ParseFloat(f[11], 64)
	s, _ := strconv.ParseFloat(f[12], 64)
	return (u + s) / 100 // USER_HZ
}

func openVPN(dir string) vpn {
	return vpn{name: "openvpn", far: "10.78.0.1", commands: func(n *network) (*exec.Cmd, *exec.Cmd, error) {
		prints := [2]string{}
		for i, name := range []string{farEnd, nearEnd} {
			var err error
			if prints[i], err = selfSigned(filepath.Join(dir, "ovpn-"+name)); err != nil {
				return nil, nil, err
			}
		}
		run := func(end string, core int, peer string, more ...string) *exec.Cmd {
			at := filepath.Join(dir, "ovpn-"+end)
			c := n.command(end, core, append([]string{"openvpn", "--dev", "tun0", "--dev-type", "tun", "--proto", "udp", "--verb", "1", "--disable-dco",
				"--cert", at + ".crt", "--key", at + ".key", "--peer-fingerprint", peer, "--data-ciphers", "AES-128-GCM", "--cipher", "AES-128-GCM"}, more...)...)
			c.Stderr, c.Stdout = nil, nil
			return c
		}
		return run(farEnd, 0, prints[1], "--tls-server", "--dh", "none", "--port", "7100", "--ifconfig", "10.78.0.1", "10.78.0.2"),
			run(nearEnd, 1, prints[0], "--tls-client", "--remote", serverAddr, "7100", "--nobind", "--ifconfig", "10.78.0.2", "10.78.0.1"), nil
	}}
}

// selfSigned writes base.crt and base.key and returns the fingerprint.
func selfSigned(base string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(base)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 24)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	var print []string
	for _, b := range sum {
		print = append(print, fmt.Sprintf("%02X", b))
	}
	return strings.Join(print, ":"), errors.Join(
		os.WriteFile(base+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(base+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), 0o600))
}

func wireGuard() vpn {
	return vpn{name: "wireguard-go", far: "10.79.0.1",
		commands: func(n *network) (*exec.Cmd, *exec.Cmd, error) {
			a, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return nil, nil, err
			}
			b, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return nil, nil, err
			}
			run := func(end string, core int, own *ecdh.PrivateKey, peer *ecdh.PublicKey, more string) *exec.Cmd {
				c := n.command(end, core, self(), "-wireguard")
				c.Stdin = strings.NewReader(fmt.Sprintf("private_key=%s\n%spublic_key=%s\n%sallowed_ip=10.79.0.0/24\n\n",
					hex.EncodeToString(own.Bytes()), map[bool]string{true: "listen_port=7101\n"}[end == farEnd], hex.EncodeToString(peer.Bytes()), more))
				return c
			}
			return run(farEnd, 0, a, b.PublicKey(), ""), run(nearEnd, 1, b, a.PublicKey(), "endpoint="+net.JoinHostPort(serverAddr, "7101")+"\n"), nil
		},
		address: func(n *network) error {
			for end, addr := range map[string]string{farEnd: "10.79.0.1", nearEnd: "10.79.0.2"} {
				var err error
				for range 40 { // until the program has made the device
					if err = sh(fmt.Sprintf("ip -n %s addr replace %s/24 dev wg0", n.prefix+end, addr)); err == nil {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				if err == nil {
					err = sh(fmt.Sprintf("ip -n %s link set wg0 up", n.prefix+end))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// runWireGuard is one end of wireguard-go; its configuration comes by stdin.
func runWireGuard() error {
	t, err := tun.CreateTUN("wg0", 1420)
	if err != nil {
		return err
	}
	var config strings.Builder
	for in := bufio.NewScanner(os.Stdin); in.Scan() && in.Text() != ""; {
		config.WriteString(in.Text() + "\n")
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := d.IpcSet(config.String()); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	return unix.Pause() // it is killed
}
