package demo

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print tells people what runs where, and what to try.
func (i *Info) Print(w io.Writer) {
	fmt.Fprintf(w, "\nYumen 玉门 is open. 演示站点已就绪。\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, where, note string) { fmt.Fprintf(t, "  %s\t%s\t%s\n", what, where, note) }
	portal, finance, echo := i.App(Portal), i.App(Finance), i.App(Echo)
	row("门户 portal", portal.URL, "alice, bob")
	row("财务 finance", finance.URL, "bob only 仅 bob")
	row("回声 echo (TCP)", echo.Address, "through the agent's SOCKS5 "+i.Agent.SOCKS5)
	row("网关 gateway", i.Gateway.Address, "metrics http://"+i.Gateway.Metrics+"/metrics")
	row("控制中心 control center", i.Control.URL, "OpenID provider "+i.Issuer)
	row("防护 guard", i.guard, i.guardNote)
	row("国密 TLCP", i.TLCP.Gateway, "the gateway: the same port takes TLS and TLCP, try https://"+i.TLCP.Host)
	row("", i.TLCP.Control, "the control center")
	for _, u := range i.Users {
		row("用户 user", u.Name+" / "+u.Password, u.ID)
	}
	row("根证书 root certificate", i.CAFile, "import it into the browser, or use --cacert")
	row("国密根证书 TLCP root", i.TLCP.CAFile, "import it into a browser that speaks TLCP")
	row("说明文件 all of it", i.Dir+"/"+InfoFile, "")
	t.Flush()

	fmt.Fprintf(w, `
Ready lines 可直接使用的命令:
  curl --cacert %[1]s -i %[2]s/whoami                         # a stranger is asked to sign in
  curl --socks5 %[3]s telnet://%[4]s                          # echo, through the tunnel, as alice
  bin/yumen status --socket %[5]s
  bin/yumen doctor tls %[9]s --server-name %[10]s --ca %[1]s --tlcp-ca %[11]s
                                                              # what the port speaks, TLS and TLCP 国密诊断

Try this 可以尝试:
  1  A denial 拒绝        sign in as alice at %[6]s: YM-303
  2  A live revocation    sign in as alice, open %[2]s/download, then
     在线撤权               bin/yumen control lock --user alice --message "see the security desk" --wait --socket %[7]s
                          (and: bin/yumen control unlock --user alice --socket %[7]s)
  3  Unplug the control   curl --unix-socket %[8]s -X POST http://local/control/stop
     center 断开控制中心     reload the portal: it goes on; then POST /control/start

Stop with Ctrl-C. 按 Ctrl-C 结束。
`, i.CAFile, portal.URL, i.Agent.SOCKS5, echo.Address, i.Gateway.Socket, finance.URL, i.Control.Socket, i.Socket, i.TLCP.Gateway, i.TLCP.Host, i.TLCP.CAFile)
}
