//go:build linux

package main

import "github.com/spf13/cobra"

// roleCmds returns the verbs of the roles that run on servers.
func roleCmds() []*cobra.Command {
	return []*cobra.Command{gatewayCmd(), controlCmd(), demoCmd(), appCmd(), statusCmd(), outboxCmd(), auditCmd(), sessionsCmd(), guardCmd(), policyCmd(), configCmd(), doctorCmd()}
}
