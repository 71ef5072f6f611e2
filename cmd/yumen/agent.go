package main

import "github.com/spf13/cobra"

// agentCmd returns `yumen agent` and its verbs.
func agentCmd() *cobra.Command {
	return &cobra.Command{Use: "agent", Short: "Run and ask the agent (运行和查询代理)"}
}

// enrollCmd returns `yumen enroll`.
func enrollCmd() *cobra.Command {
	return &cobra.Command{Use: "enroll CODE", Short: "Enrol this machine with a one-time code (使用一次性登记码登记本机)", Args: cobra.ExactArgs(1)}
}
