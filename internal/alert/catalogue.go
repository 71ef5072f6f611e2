package alert

import (
	"fmt"
	"strings"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Class 1: a policy was violated.
const (
	AccessRefused    Code = "1.001" // one subject refused again and again
	TokenMisuse      Code = "1.002" // a token used on another device
	TokenGuessing    Code = "1.003"
	SessionCut       Code = "1.004" // a live session lost its right
	PolicyUnreadable Code = "1.005" // unknown type or row that does not parse: its scope is closed
	LockInForce      Code = "1.006"
	LoginAttack      Code = "1.007" // repeated failed sign-ins
	RenewalMissed    Code = "1.008"
)

// Class 2: a part of the system is at fault.
const (
	ListRefused      Code = "2.001" // an envelope fault: the whole list is refused
	ListBadRow       Code = "2.002" // a genuine list with a row that grants nothing
	ControlLost      Code = "2.003"
	ControlBack      Code = "2.004"
	AppDown          Code = "2.005"
	AppBack          Code = "2.006"
	OutboxDropped    Code = "2.007"
	MessageRefused   Code = "2.008"
	ClockJump        Code = "2.009"
	ConfigRefused    Code = "2.010"
	CertExpiring     Code = "2.011"
	InternalFault    Code = "2.012" // a panic was contained
	AuditDropped     Code = "2.013"
	ListStale        Code = "2.014"
	DeliveryLate     Code = "2.015" // a message took more than 3 s
	TunnelFault      Code = "2.016" // the agent's tunnel failed
	StateAltered     Code = "2.017" // a state file was changed from outside
	DestinationFault Code = "2.018" // an upstream address broke the address rules
	ListStrict       Code = "2.019" // stale for so long that new sessions are refused
	ListEnded        Code = "2.020" // stale for so long that nothing is allowed
	ListFresh        Code = "2.021"
	StateDiffers     Code = "2.022" // gateway and control center do not agree on what is in force
	StateUnproved    Code = "2.023" // the state folder may be a restored copy
	GuardOff         Code = "2.024" // the guard that is configured does not run
	DiskFull         Code = "2.025" // the outbox found no space
	DiskBack         Code = "2.026"
	DiskFault        Code = "2.027" // a write or a sync of the outbox failed
	OutboxFilling    Code = "2.028" // a class of the outbox has reached 80 % of its cap
)

// Class 3: traffic is not normal.
const (
	ConnectionFlood Code = "3.001"
	HandshakeFaults Code = "3.002"
	RequestAbuse    Code = "3.003" // malformed or ambiguous requests
	TunnelAbuse     Code = "3.004" // frames beyond credit or rate
	GuardFlood      Code = "3.005" // the guard drops more than the threshold
)

// Entry is what the catalogue says of a code.
type Entry struct {
	Code               Code
	Level              Level
	EN, ZH             string // what happened
	AdviceEN, AdviceZH string // a possible solution (clause 7.4)
	ToAgent            bool   // goes to the agents concerned as Table 15, too
}

var catalogue = []Entry{
	{AccessRefused, Normal, "access refused", "访问被拒绝", "Check the user's grants and the policies that apply.", "请检查该用户的授权及适用的策略。", true},
	{TokenMisuse, Severe, "a token was used on another device", "令牌被用于其他设备", "Lock the user and look for a stolen token.", "请锁定该用户并排查令牌泄露。", false},
	{TokenGuessing, Severe, "tokens are being guessed", "存在猜测令牌的行为", "Lock the device.", "请锁定该设备。", false},
	{SessionCut, Warning, "a live session was cut", "在线会话被切断", "See the reason; ask the administrator if it is unexpected.", "请查看原因，如有疑问请联系管理员。", true},
	{PolicyUnreadable, Warning, "a policy cannot be read, its scope is closed", "策略无法解析，相应范围已关闭", "Correct the policy at the control center.", "请在控制中心更正该策略。", false},
	{LockInForce, Warning, "a lock is in force", "锁定已生效", "Unlock when the cause is gone.", "原因消除后请解除锁定。", true},
	{LoginAttack, Warning, "repeated failed sign-ins", "多次登录失败", "Check with the user, lock the account if it is an attack.", "请与用户核实，如属攻击请锁定账号。", false},
	{RenewalMissed, Warning, "an identity was not renewed in time", "身份未按时续证", "Check the agent and its network.", "请检查代理及其网络。", true},

	{ListRefused, Severe, "an access list was refused, the last good one stays", "授权清单被拒绝，继续使用上一份有效清单", "Check the control center's signer, clock and address.", "请检查控制中心的签名、时钟和地址。", false},
	{ListBadRow, Warning, "a row of a list grants nothing because it is not valid", "清单中存在无效行，该行不产生授权", "Correct the row at the control center.", "请在控制中心更正该行。", false},
	{ControlLost, Warning, "the control center cannot be reached", "无法连接控制中心", "Check the network and the control center; enforcement goes on.", "请检查网络和控制中心；访问控制继续生效。", false},
	{ControlBack, Normal, "the control center is reached again", "控制中心连接已恢复", "Nothing to do.", "无需处理。", false},
	{AppDown, Warning, "an application is offline", "应用系统不在线", "Check the application and its connector.", "请检查应用系统及其连接器。", false},
	{AppBack, Normal, "an application is online again", "应用系统已恢复在线", "Nothing to do.", "无需处理。", false},
	{OutboxDropped, Severe, "buffered records were dropped", "缓存的记录被丢弃", "Restore the link to the control center; raise the outbox limits.", "请恢复与控制中心的连接，并调高缓存上限。", false},
	{MessageRefused, Warning, "a message was refused", "报文被拒绝", "Compare keys, clocks and identifiers of the two ends.", "请核对两端的密钥、时钟和标识。", false},
	{ClockJump, Warning, "the clock jumped", "系统时钟跳变", "Check the time service.", "请检查时间同步服务。", false},
	{ConfigRefused, Warning, "a new configuration was refused, the old one stays", "新配置被拒绝，继续使用原配置", "Run yumen config check and correct the file.", "请运行 yumen config check 并更正配置文件。", false},
	{CertExpiring, Warning, "a certificate expires soon", "证书即将到期", "Renew the certificate.", "请更新证书。", false},
	{InternalFault, Severe, "an internal fault was contained", "内部故障已被隔离", "Report the log entry to the maintainers.", "请将日志反馈给维护者。", false},
	{AuditDropped, Severe, "audit records were dropped", "审计记录被丢弃", "Free disk space and check the audit store.", "请释放磁盘空间并检查审计存储。", false},
	{ListStale, Warning, "the access list is stale", "授权清单已陈旧", "Restore the link to the control center.", "请恢复与控制中心的连接。", false},
	{DeliveryLate, Warning, "a message took more than 3 s", "报文传输超过3秒", "Check the network between the two ends.", "请检查两端之间的网络。", false},
	{TunnelFault, Warning, "the tunnel failed", "隧道故障", "Check the network; the agent reconnects by itself.", "请检查网络，代理会自动重连。", false},
	{StateAltered, Severe, "a state file was altered from outside", "状态文件被外部篡改", "Enrol again and look for the cause.", "请重新登记并排查原因。", false},
	{DestinationFault, Warning, "an application's address breaks the address rules", "应用系统地址违反地址规则", "Correct the application's address or permit it.", "请更正应用系统地址或将其加入许可。", false},
	{ListStrict, Severe, "the access list is stale: new sessions are refused", "授权清单已陈旧：拒绝新会话", "Restore the link to the control center.", "请恢复与控制中心的连接。", false},
	{ListEnded, Severe, "the access list has ended: nothing is allowed", "授权清单已失效：拒绝一切访问", "Restore the link to the control center.", "请恢复与控制中心的连接。", false},
	{ListFresh, Normal, "the access list is fresh again", "授权清单已恢复为最新", "Nothing to do.", "无需处理。", false},
	{StateDiffers, Severe, "gateway and control center differ on what is in force, the whole list is fetched", "网关与控制中心的生效内容不一致，正在重新获取完整清单", "Look for bad rows in the list and for faults of the disk.", "请检查清单中的无效行以及磁盘故障。", false},
	{StateUnproved, Severe, "the state folder may be a restored copy: nothing is granted until the control center answers", "状态目录可能是恢复的备份：在控制中心应答之前不授予任何访问", "Restore the link to the control center; look for who replaced the state folder.", "请恢复与控制中心的连接，并排查状态目录被替换的原因。", false},
	{GuardOff, Severe, "the guard does not run", "防护未运行", "See the detail for what the system lacks; admission is enforced in user space.", "请查看详情了解系统缺少的条件；准入控制暂由用户态执行。", false},

	{DiskFull, Severe, "the disk is full: alerts and identity reports go into the reserve, audit and status reports are refused", "磁盘已满：告警和身份报告使用预留空间，审计和状态报告被拒绝", "Free space on the disk of the state folder, or lower the limits of the outbox.", "请释放状态目录所在磁盘的空间，或调低发件箱上限。", false},
	{DiskBack, Normal, "the disk has space again", "磁盘空间已恢复", "Nothing to do.", "无需处理。", false},
	{DiskFault, Severe, "a write to the outbox failed, another file takes its place", "发件箱写入失败，已改用新文件", "Check the disk and the kernel log.", "请检查磁盘和内核日志。", false},
	{OutboxFilling, Warning, "buffered records have reached 80 % of their limit", "缓存的记录已达上限的80%", "Restore the link to the control center; raise the outbox limits.", "请恢复与控制中心的连接，并调高缓存上限。", false},

	{ConnectionFlood, Severe, "too many connections", "连接数异常", "See the top sources; block them.", "请查看主要来源并予以阻断。", false},
	{HandshakeFaults, Warning, "many handshakes fail", "大量握手失败", "See the reasons and the top sources.", "请查看原因和主要来源。", false},
	{RequestAbuse, Warning, "many malformed requests", "大量异常请求", "See the top sources; block them.", "请查看主要来源并予以阻断。", false},
	{TunnelAbuse, Warning, "a tunnel broke its limits", "隧道超出限制", "Check or lock the device.", "请检查或锁定该设备。", false},
	{GuardFlood, Warning, "the guard drops many packets", "防护丢弃大量数据包", "See the top sources with yumen guard top; add them to a blocklist.", "请用 yumen guard top 查看主要来源，并加入封禁名单。", false},
}

var byCode = func() map[Code]*Entry {
	m := make(map[Code]*Entry, len(catalogue))
	for i := range catalogue {
		m[catalogue[i].Code] = &catalogue[i]
	}
	return m
}()

// Catalogue returns every entry, in the order of the codes. The slice is the
// caller's.
func Catalogue() []Entry { return append([]Entry(nil), catalogue...) }

// Lookup returns the entry of c.
func Lookup(c Code) (Entry, bool) {
	e, ok := byCode[c]
	if !ok {
		return Entry{}, false
	}
	return *e, true
}

// Content returns exceptionAlertContent: device, time, type, level, what
// happened, and a possible solution, as clause 7.4 demands, in l. device names
// the reporter's own device.
func (a Alert) Content(l reason.Lang, device string) string {
	e, ok := byCode[a.Code]
	if !ok {
		e = &Entry{Code: a.Code, Level: Warning, EN: string(a.Code), ZH: string(a.Code)}
	}
	level := a.Level
	if level == 0 {
		level = e.Level
	}
	var b strings.Builder
	what, advice, format := e.EN, e.AdviceEN, "device %s, time %s, type %s, level %d: %s"
	if l == reason.Chinese {
		what, advice, format = e.ZH, e.AdviceZH, "设备 %s，时间 %s，类型 %s，级别 %d：%s"
	}
	fmt.Fprintf(&b, format, device, a.Time.UTC().Format("2006-01-02T15:04:05Z"), a.Code, level, what)
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "; %s %s", name, value)
		}
	}
	if a.Reason != reason.OK {
		field(a.Reason.Code(), a.Reason.Text(l))
	}
	field("user", a.UserID)
	field("subject-device", a.DeviceID)
	field("app", a.AppID)
	field("session", a.SessionID)
	field("from", a.Remote)
	field("detail", a.Detail)
	if a.Repeats > 0 {
		field("repeats", fmt.Sprint(a.Repeats))
	}
	if advice != "" {
		b.WriteString("; ")
		b.WriteString(advice)
	}
	return b.String()
}
