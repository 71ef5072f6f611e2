package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/crypto/diagnose"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
)

// certCmd returns `yumen cert`.
func certCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "cert", Short: "Check TLCP certificates, or make some for a laboratory (双证书检查与生成)"}
	cmd.AddCommand(certCheckCmd(), certLabCmd())
	return cmd
}

func certCheckCmd() *cobra.Command {
	var o diagnose.FilesOptions
	var format, passphrase string
	cmd := &cobra.Command{
		Use: "check FILE...", Short: "Say which of the two certificates of a TLCP party is wrong, and how", Args: cobra.MinimumNArgs(1),
		Long: `Give the signing and the encryption certificate, their intermediates and, if you like, their
private keys, as PEM files in any order. Nothing is changed and no key is printed.
请给出签名证书、加密证书、中间证书以及（可选）私钥的 PEM 文件，顺序不限。不会修改文件，也不会输出密钥。`,
		Example: "  yumen cert check sign.crt enc.crt --ca root.crt --name gw.example.org\n  yumen cert check sign.crt sign.key enc.crt enc.key -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if passphrase != "" {
				var err error
				if o.Passphrase, err = keystore.ReadPassphrase(passphrase); err != nil {
					return err
				}
			}
			r := diagnose.CheckFiles(args, o)
			return report(cmd, format, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.CA, "ca", "", "PEM file of the root that both must lead to")
	f.StringArrayVar(&o.Names, "name", nil, "host name or address that both must have; may be repeated")
	f.BoolVar(&o.Client, "client", false, "the certificates are a client's")
	f.StringVar(&passphrase, "passphrase-file", "", "file with the passphrase of encrypted keys, mode 0600")
	outputFlag(cmd, &format)
	return cmd
}

// reporter is what the verbs of examination have.
type reporter interface {
	Write(io.Writer) error
	Err() error
}

// report prints r; a fault in it makes the verb fail.
func report(cmd *cobra.Command, format string, r reporter) error {
	var written error
	if err := output(cmd.OutOrStdout(), format, r, func(w io.Writer) { written = r.Write(w) }); err != nil {
		return err
	}
	return errors.Join(written, r.Err())
}

func certLabCmd() *cobra.Command {
	var c lab.SetConfig
	var days int
	cmd := &cobra.Command{
		Use: "lab --dir DIR --name NAME...", Short: "Make a TLCP root, a server's and a client's certificates with keys, for tests", Args: cobra.NoArgs,
		Long: `Writes a TLCP server's two certificates and keys, those of a client, and the root of both.
For laboratories: the keys are not encrypted, and the root's key is thrown away.
生成一套 TLCP 服务器和客户端双证书、私钥及根证书。仅用于实验：私钥不加密，根私钥不保留。`,
		Example: "  yumen cert lab --dir lab --name gw.example.org --name 127.0.0.1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 1 || days > 3650 {
				return &usageError{errors.New("--days: 1 to 3650")}
			}
			c.Life = time.Duration(days) * 24 * time.Hour
			s, err := lab.WriteSet(c)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), `# for gateway.yaml (写入 gateway.yaml)
certificates:
  - sign_cert_file: %[2]s
    sign_key_file: %[3]s
    enc_cert_file: %[4]s
    enc_key_file: %[5]s
# clients trust %[1]s; a client's own: %[6]s %[7]s
# check (检查):
#   yumen cert check %[2]s %[3]s %[4]s %[5]s --ca %[1]s --name %[8]s
#   openssl verify -CAfile %[1]s -vfyopt distid:1234567812345678 %[2]s %[4]s
`, s.Root, s.Server.SignCert, s.Server.SignKey, s.Server.EncCert, s.Server.EncKey, s.Client.SignCert, s.Client.EncCert, strings.Join(c.Hosts, " --name "))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Dir, "dir", "", "folder to write to")
	f.StringArrayVar(&c.Hosts, "name", nil, "host name or address of the server; may be repeated")
	f.IntVar(&days, "days", 90, "life of the certificates")
	f.StringVar(&c.ID.Device, "device", "DEV00000LAB", "deviceId of the client")
	for _, name := range []string{"dir", "name"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flags were added above
		}
	}
	return cmd
}
