//go:build linux

package main

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/bpf/probe"
	"github.com/yumen-zt/yumen/crypto/diagnose"
)

// doctorCmd returns `yumen doctor`.
func doctorCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "doctor", Short: "Find out what is wrong with a server or this machine (诊断)"}
	cmd.AddCommand(doctorTLSCmd(), doctorKernelCmd(), doctorCryptoCmd())
	return cmd
}

func doctorCryptoCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "crypto", Short: "Run the self-tests of the cryptography, and measure it (密码自检)", Args: cobra.NoArgs,
		Long: `Runs the known-answer tests of SM2, SM3, SM4 and the TLCP key derivation and the health tests
of the random source, as every role does before it opens a listener, and shows what this
processor does for them. The speeds are information.
运行 SM2、SM3、SM4、TLCP 密钥派生的已知答案测试和随机数健康测试，并显示处理器加速情况；速度仅供参考。`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := diagnose.Crypto()
			if err != nil {
				return err
			}
			return report(cmd, format, r)
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func doctorKernelCmd() *cobra.Command {
	var format, iface, pins string
	cmd := &cobra.Command{
		Use: "kernel", Short: "Say what this system has for the guard, which tier will run, and what lacks (内核诊断)", Args: cobra.NoArgs,
		Long: `Looks at BPF, at XDP by interface and driver, at bpffs, nftables and the capabilities of
whoever runs it, loads the guard's program without attaching it, and has the kernel check
the rules of the second tier. Says which tier the gateway would run in, what lacks and how
to get it. Run it as the gateway's user.
检查 BPF、各网卡驱动的 XDP 支持、bpffs、nftables 和当前进程的权能，试加载防护程序（不挂载），
说明网关将使用哪一层防护、缺少什么以及如何补齐。请以网关的运行用户执行。`,
		Example: "  yumen doctor kernel --interface eth0\n  yumen doctor kernel -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := probe.Kernel(pins, iface)
			if err != nil {
				return err
			}
			return report(cmd, format, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&iface, "interface", "", "look at this interface only (default: all that are up)")
	f.StringVar(&pins, "pin-dir", "", "guard.pin_dir of gateway.yaml")
	outputFlag(cmd, &format)
	return cmd
}

func doctorTLSCmd() *cobra.Command {
	var format, ca, tlcpCA string
	var o diagnose.ServerOptions
	cmd := &cobra.Command{
		Use: "tls HOST:PORT", Short: "Ask a server what it speaks, TLS and TLCP, and say what is wrong (TLS 与 TLCP 诊断)", Args: cobra.ExactArgs(1),
		Long: `Connects some dozen times, asks for each version of TLS and each suite of TLCP, examines the
certificates of both, and says what is wrong and what to do. It sends no request and
accepts nothing. It may be pointed at any server, not only at Yumen's.
连接服务器十余次，逐一询问 TLS 版本和 TLCP 套件，检查双方证书并给出问题和处理办法；不发送请求。`,
		Example: "  yumen doctor tls gw.example.org:443\n  yumen doctor tls 10.0.0.1:443 --server-name gw.example.org --ca root.pem --tlcp-ca tlcp-root.crt",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Address = args[0]
			if _, _, err := net.SplitHostPort(o.Address); err != nil {
				return &usageError{fmt.Errorf("%q is no HOST:PORT", o.Address)}
			}
			if ca != "" {
				pem, err := os.ReadFile(ca)
				if err != nil {
					return fmt.Errorf("read roots: %w", err)
				}
				if o.Roots = x509.NewCertPool(); !o.Roots.AppendCertsFromPEM(pem) {
					return fmt.Errorf("read roots: %s holds no certificate that TLS knows (a TLCP root goes to --tlcp-ca)", ca)
				}
			}
			if tlcpCA != "" {
				var err error
				if o.TLCPRoots, err = diagnose.ReadRoots(tlcpCA); err != nil {
					return fmt.Errorf("read TLCP roots from %s: %w", tlcpCA, err)
				}
			}
			return report(cmd, format, diagnose.Server(cmd.Context(), o))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.ServerName, "server-name", "", "name to ask for and to find in the certificates (default: the host)")
	f.StringVar(&ca, "ca", "", "PEM file of the roots for TLS (default: the system's)")
	f.StringVar(&tlcpCA, "tlcp-ca", "", "PEM file of the roots for TLCP")
	f.DurationVar(&o.Timeout, "timeout", 30*time.Second, "of the whole examination")
	outputFlag(cmd, &format)
	return cmd
}
