//go:build linux

package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/apps/link"
	"github.com/yumen-zt/yumen/crypto/keystore"
)

// appCmd returns `yumen app`, the connector of applications that cannot send
// Table 1 themselves.
func appCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "app", Short: "Keep an application online at the gateway (应用连接器)"}
	var dir, passFile string
	var c link.ClientConfig
	run := &cobra.Command{
		Use: "run --gateway URL --service HOST:PORT", Short: "Probe the application and report Table 1 until interrupted", Args: cobra.NoArgs, Annotations: role,
		Example: "  yumen enroll CODE --dir connector\n  yumen app run --dir connector --gateway https://gateway.example:8443 --service 10.1.2.3:8080",
	}
	f := run.Flags()
	f.StringVar(&dir, "dir", ".", "what `yumen enroll` wrote")
	f.StringVar(&passFile, "passphrase-file", "", "opens the keys; default DIR/passphrase")
	f.StringVar(&c.URL, "gateway", "", "the gateway, by the name of its app_link.host")
	f.StringVar(&c.Address, "address", "", "host:port to dial instead of the URL's")
	f.StringVar(&c.Service, "service", "", "host:port of the application")
	f.StringVar((*string)(&c.Crypto), "crypto-profile", "mixed", "gm and mixed: by TLCP; intl: by TLS")
	f.StringVar(&c.AppName, "name", "", "name of the application; default: its id")
	for _, name := range []string{"gateway", "service"} {
		if err := run.MarkFlagRequired(name); err != nil {
			panic(err) // the flags were added above
		}
	}
	run.RunE = func(cmd *cobra.Command, _ []string) error {
		if passFile == "" {
			passFile = filepath.Join(dir, "passphrase")
		}
		pass, err := keystore.ReadPassphrase(passFile)
		if err != nil {
			return err
		}
		if c.Keys, err = keystore.Open(filepath.Join(dir, "keys"), pass); err != nil {
			return err
		}
		log, err := zap.NewProduction()
		if err != nil {
			return fmt.Errorf("make log: %w", err)
		}
		c.Logger = log
		client, err := link.NewClient(c)
		if err != nil {
			return err
		}
		return client.Run(cmd.Context())
	}
	cmd.AddCommand(run)
	return cmd
}
