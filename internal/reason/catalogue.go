package reason

type entry struct {
	name               string // lower snake case
	status             int    // HTTP status; 0 means 403
	en, zh             string
	adviceEN, adviceZH string
}

const (
	askAdmin   = "Quote the code and the request id to your administrator."
	askAdminZH = "请将代码和请求编号告知管理员。"
	login      = "Sign in again."
	loginZH    = "请重新登录。"
	sendClean  = "Send one unambiguous request."
	sendCleanZ = "请发送格式明确的请求。"
	seePeer    = "Compare clocks, keys and identifiers of the two ends."
	seePeerZH  = "请核对两端的时钟、密钥和标识。"
)

var catalogue = map[Reason]entry{
	OK: {name: "ok", status: 200, en: "allowed", zh: "允许"},

	AcceptLimit:      {"accept_limit", 503, "too many connections", "连接数已达上限", "Try again later.", "请稍后再试。"},
	SourceLimit:      {"source_limit", 429, "too many connections from this address", "该地址的连接数过多", "Try again later.", "请稍后再试。"},
	HelloTimeout:     {"hello_timeout", 408, "no complete hello in time", "握手首包超时", "", ""},
	HelloMalformed:   {"hello_malformed", 400, "the first bytes are no TLS hello", "首包不是 TLS 握手", "Speak TLS 1.2 or newer to this port.", "请使用 TLS 1.2 或更高版本访问该端口。"},
	PlainHTTP:        {"plain_http", 400, "plain HTTP on a TLS port", "在 TLS 端口上使用了明文 HTTP", "Use https.", "请使用 https。"},
	TLSVersion:       {"tls_version", 400, "the TLS version is too old", "TLS 版本过低", "Use TLS 1.2 or newer.", "请使用 TLS 1.2 或更高版本。"},
	HandshakeFailed:  {"handshake_failed", 400, "the TLS handshake failed", "TLS 握手失败", "", ""},
	ClientCertAbsent: {"client_cert_absent", 401, "a client certificate is demanded here", "此处需要客户端证书", "Enrol this device.", "请先登记本设备。"},
	ClientCertBad:    {"client_cert_bad", 401, "the client certificate is not accepted", "客户端证书不被接受", "Enrol this device again.", "请重新登记本设备。"},
	ClientCertGone:   {"client_cert_gone", 401, "the client certificate has expired or is revoked", "客户端证书已过期或被吊销", "Enrol this device again.", "请重新登记本设备。"},
	SNIUnknown:       {"sni_unknown", 421, "no application has this server name", "没有应用使用该服务器名", "", ""},
	HandshakeLimit:   {"handshake_limit", 503, "too many handshakes in progress", "正在进行的握手过多", "Try again later.", "请稍后再试。"},
	ProtocolRefused:  {"protocol_refused", 400, "this protocol is switched off here", "此处未启用该协议", askAdmin, askAdminZH},
	IdleTimeout:      {"idle_timeout", 408, "idle for too long", "空闲时间过长", "", ""},
	ALPNRefused:      {"alpn_refused", 400, "no common application protocol", "没有共同的应用层协议", "", ""},
	TLSRefused:       {"tls_refused", 400, "TLS is switched off here: TLCP (GB/T 38636) is demanded", "此处已停用 TLS，须使用国密 TLCP 协议（GB/T 38636）", "Use a browser or an agent that speaks TLCP.", "请使用支持国密 TLCP 的浏览器或代理。"},
	TLCPRefused:      {"tlcp_refused", 400, "TLCP is switched off here: TLS is demanded", "此处未启用国密 TLCP，须使用 TLS 协议", "Use TLS 1.2 or newer.", "请使用 TLS 1.2 或更高版本。"},
	TLCPPreferred:    {"tlcp_preferred", 400, "the client is asked to come back with TLCP", "要求客户端改用国密 TLCP 重新连接", "", ""},
	NoCommonSuite:    {"no_common_suite", 400, "no common cipher suite or group", "没有共同的密码套件或曲线", "Enable a suite that both ends know.", "请启用双方都支持的密码套件。"},
	ClientCertUsage:  {"client_cert_usage", 401, "a client certificate lacks a key usage", "客户端证书缺少所需的密钥用法", "Enrol this device again.", "请重新登记本设备。"},
	ClientCertIssuer: {"client_cert_issuer", 401, "the client certificate is of an unknown authority", "客户端证书的签发者不受信任", "Enrol this device again.", "请重新登记本设备。"},
	PeerAlert:        {"peer_alert", 400, "the client ended the handshake by an alert", "客户端以告警终止了握手", "Look which certificate or protocol the client does not accept.", "请检查客户端不接受哪张证书或哪种协议。"},

	LoginRequired:    {"login_required", 401, "sign in first", "请先登录", login, loginZH},
	LoginFailed:      {"login_failed", 401, "the sign-in failed", "登录失败", login, loginZH},
	SessionExpired:   {"session_expired", 401, "the session has expired", "会话已过期", login, loginZH},
	SessionRevoked:   {"session_revoked", 401, "the session was revoked", "会话已被撤销", login, loginZH},
	SessionUnknown:   {"session_unknown", 401, "the session is not known here", "会话不存在", login, loginZH},
	SubjectUnmapped:  {"subject_unmapped", 403, "this account has no user here", "该账号没有对应的用户", askAdmin, askAdminZH},
	DeviceUnknown:    {"device_unknown", 403, "the device is not known", "设备未登记", "Enrol this device.", "请先登记本设备。"},
	DeviceMismatch:   {"device_mismatch", 403, "the device is not the one of the certificate", "设备与证书不符", askAdmin, askAdminZH},
	UserMismatch:     {"user_mismatch", 403, "the user is not the one of the grant", "用户与授权不符", askAdmin, askAdminZH},
	TokenUnknown:     {"token_unknown", 403, "the token is not valid", "令牌无效", login, loginZH},
	TokenExpired:     {"token_expired", 403, "the token has expired", "令牌已过期", login, loginZH},
	TokenOtherDevice: {"token_other_device", 403, "the token is not valid", "令牌无效", login, loginZH},
	TokenGuessLimit:  {"token_guess_limit", 429, "too many wrong tokens", "错误令牌次数过多", "Wait a minute, then sign in again.", "请稍候一分钟再登录。"},
	AgentMismatch:    {"agent_mismatch", 403, "the agent is not the one of the certificate", "代理与证书不符", askAdmin, askAdminZH},
	LoggedOut:        {"logged_out", 401, "signed out", "已退出登录", login, loginZH},
	SessionLimit:     {"session_limit", 503, "too many sessions", "会话数已达上限", "Try again later.", "请稍后再试。"},
	CookieInvalid:    {"cookie_invalid", 401, "the session cookie is not valid", "会话凭据无效", login, loginZH},
	RenewalMissed:    {"renewal_missed", 401, "the identity was not renewed in time", "未按时续证身份", "Check the agent's connection.", "请检查代理的网络连接。"},
	Locked:           {"locked", 403, "locked by the administrator", "已被管理员锁定", askAdmin, askAdminZH},
	CutByOperator:    {"cut_by_operator", 403, "closed by an operator", "已被运维人员断开", askAdmin, askAdminZH},
	LoginLimit:       {"login_limit", 429, "too many failed sign-ins", "登录失败次数过多", "Wait, then sign in again, or ask your administrator to unlock the account.", "请稍候再登录，或联系管理员解锁账号。"},
	FactorRefused:    {"factor_refused", 400, "this way to sign in is not supported here", "此处不支持该登录方式", "Sign in with the user name and the password alone.", "请仅使用用户名和口令登录。"},

	NoGrant:        {"no_grant", 403, "no access is granted to this user on this device", "该用户在该设备上没有任何授权", "Ask for access to the application.", "请申请该应用的访问权限。"},
	GrantExpired:   {"grant_expired", 403, "the grant has expired", "授权已过期", login, loginZH},
	AppNotGranted:  {"app_not_granted", 403, "this application is not granted", "未获得该应用的授权", "Ask for access to the application.", "请申请该应用的访问权限。"},
	GrantRevoked:   {"grant_revoked", 403, "the grant was withdrawn", "授权已被收回", askAdmin, askAdminZH},
	BrowserRefused: {"browser_refused", 403, "this application cannot be used from an unmanaged browser", "该应用不允许未受管的浏览器访问", "Use an enrolled device.", "请使用已登记的设备。"},
	ListExpired:    {"list_expired", 503, "the access list is out of date", "访问授权清单已失效", "The gateway must reach its control center.", "网关需要恢复与控制中心的连接。"},
	NoList:         {"no_list", 503, "no access list has arrived yet", "尚未获得访问授权清单", "The gateway must reach its control center.", "网关需要恢复与控制中心的连接。"},
	ListStale:      {"list_stale", 503, "the access list is stale: no new session until the control center is reached", "授权清单已陈旧：恢复与控制中心的连接之前不接受新会话", "The gateway must reach its control center.", "网关需要恢复与控制中心的连接。"},

	PolicyIPAllow:     {"policy_ipallow", 403, "not from this address", "来源地址不在允许范围内", "Use a network that the policy allows.", "请使用策略允许的网络。"},
	PolicyIPDeny:      {"policy_ipdeny", 403, "this address is denied", "来源地址被禁止", askAdmin, askAdminZH},
	PolicyTime:        {"policy_time", 403, "outside the permitted hours", "不在允许的时间段内", "Come back in the permitted hours.", "请在允许的时间段内访问。"},
	PolicyPosture:     {"policy_posture", 403, "the device's posture is too low or not known", "设备安全状态不足或未知", "Bring the device into the demanded state.", "请使设备达到要求的安全状态。"},
	PolicyAuthAge:     {"policy_authage", 401, "the sign-in is too old", "登录时间过久", login, loginZH},
	PolicyMFA:         {"policy_mfa", 401, "a further factor is demanded", "需要进一步的身份验证", "Sign in with the demanded factors.", "请使用所要求的方式登录。"},
	PolicyLevel:       {"policy_level", 401, "the sign-in's level is too low", "登录等级不足", "Sign in with a stronger method.", "请使用更强的方式登录。"},
	PolicyRate:        {"policy_rate", 429, "too many requests", "请求过于频繁", "Slow down.", "请降低请求频率。"},
	PolicyMaxConn:     {"policy_maxconn", 429, "too many connections at once", "并发连接过多", "Close other connections.", "请关闭其他连接。"},
	PolicyGeo:         {"policy_geo", 403, "not from this place", "所在位置不被允许", askAdmin, askAdminZH},
	PolicyApp:         {"policy_app", 403, "this method or path is not permitted", "该方法或路径不被允许", askAdmin, askAdminZH},
	PolicyRisk:        {"policy_risk", 403, "the risk is too high or not known", "风险过高或未知", askAdmin, askAdminZH},
	PolicyTLS:         {"policy_tls", 403, "another transport protocol is demanded", "需要使用其他传输协议", "Use a client that speaks the demanded protocol.", "请使用支持所要求协议的客户端。"},
	PolicyUnknownType: {"policy_unknown_type", 403, "a policy of unknown type applies", "存在未知类型的策略", askAdmin, askAdminZH},
	PolicyInvalid:     {"policy_invalid", 403, "a policy that cannot be read applies", "存在无法解析的策略", askAdmin, askAdminZH},
	PolicyRef:         {"policy_ref", 403, "a policy bundle that is not at hand applies", "策略引用的内容不可用", askAdmin, askAdminZH},

	AppUnknown:          {"app_unknown", 403, "this application is not granted", "未获得该应用的授权", "Ask for access to the application.", "请申请该应用的访问权限。"},
	AppOffline:          {"app_offline", 503, "the application is offline", "应用系统不在线", "Try again later.", "请稍后再试。"},
	UpstreamUnreachable: {"upstream_unreachable", 502, "the application cannot be reached", "无法连接应用系统", "Try again later.", "请稍后再试。"},
	UpstreamTimeout:     {"upstream_timeout", 504, "the application did not answer in time", "应用系统响应超时", "Try again later.", "请稍后再试。"},
	UpstreamBadResponse: {"upstream_bad_response", 502, "the application's answer is not valid", "应用系统的响应无效", askAdmin, askAdminZH},
	AddressRefused:      {"address_refused", 502, "the application's address is not permitted", "应用系统的地址不被允许", askAdmin, askAdminZH},
	HostUnknown:         {"host_unknown", 404, "no application has this name", "没有使用该域名的应用", "", ""},
	RequestMalformed:    {"request_malformed", 400, "the request is malformed", "请求格式错误", sendClean, sendCleanZ},
	PathAmbiguous:       {"path_ambiguous", 400, "the path can be read in two ways", "路径存在歧义", sendClean, sendCleanZ},
	HostMismatch:        {"host_mismatch", 421, "host and server name differ", "主机名与服务器名不一致", "Open a new connection to this host.", "请重新连接该主机。"},
	HeaderRefused:       {"header_refused", 400, "a header field is not accepted", "请求头字段不被接受", sendClean, sendCleanZ},
	MethodRefused:       {"method_refused", 405, "this method is not accepted", "请求方法不被接受", "", ""},
	UpgradeRefused:      {"upgrade_refused", 400, "this upgrade is not accepted", "不接受该协议升级", "", ""},
	BodyTooLarge:        {"body_too_large", 413, "the body is too large", "请求体过大", "", ""},
	HeaderTooLarge:      {"header_too_large", 431, "the header is too large", "请求头过大", "", ""},
	BodyTooSlow:         {"body_too_slow", 408, "the body arrives too slowly", "请求体传输过慢", "", ""},
	LoopDetected:        {"loop_detected", 508, "the request came back to the gateway", "请求形成环路", askAdmin, askAdminZH},
	ClientGone:          {"client_gone", 499, "the client went away", "客户端已断开", "", ""},

	MessageMalformed:  {"message_malformed", 400, "the message cannot be read", "报文无法解析", seePeer, seePeerZH},
	MessageSignature:  {"message_signature", 400, "the signature does not verify", "签名验证失败", seePeer, seePeerZH},
	MessageReceiver:   {"message_receiver", 400, "the message is for another receiver", "报文接收方不符", seePeer, seePeerZH},
	MessageSkew:       {"message_skew", 400, "the sending time is outside the window", "发送时间超出允许范围", seePeer, seePeerZH},
	MessageConflict:   {"message_conflict", 400, "the message id was used with another body", "报文编号重复且内容不同", seePeer, seePeerZH},
	MessageAlgorithm:  {"message_algorithm", 400, "the algorithm is not accepted on this link", "该链路不接受此算法", seePeer, seePeerZH},
	MessageSealed:     {"message_sealed", 400, "the body cannot be opened", "报文体无法解密", seePeer, seePeerZH},
	ListOlder:         {"list_older", 400, "the list is older than one already seen", "清单版本低于已接收版本", seePeer, seePeerZH},
	ListOtherReceiver: {"list_other_receiver", 400, "the list is for another gateway", "清单属于其他网关", seePeer, seePeerZH},
	ListSigner:        {"list_signer", 400, "the list's signer is not trusted", "清单签名者不受信任", seePeer, seePeerZH},
	ListIncomplete:    {"list_incomplete", 400, "the list is incomplete", "清单不完整", seePeer, seePeerZH},
	ListBadRow:        {"list_bad_row", 400, "a row of the list is not valid", "清单中存在无效行", "Correct the row at the control center.", "请在控制中心更正该行。"},
	MessageInvalid:    {"message_invalid", 400, "a field breaks its rule", "报文字段不符合规定", "Correct the field that is named.", "请更正所指出的字段。"},
	NotAuthenticated:  {"not_authenticated", 403, "identify yourself first", "请先完成身份验证", "Send Table 4 or Table 16 first.", "请先发送表4或表16报文。"},
	MessageTooLarge:   {"message_too_large", 413, "the message is too large", "报文过大", "", ""},
	EnrolCode:         {"enrol_code", 403, "the enrolment code is not valid", "登记码无效", "Ask for a new code.", "请申请新的登记码。"},
	MessageSender:     {"message_sender", 400, "the sender is not the one of the channel", "报文发送方与信道身份不符", seePeer, seePeerZH},

	TunnelLimit:     {"tunnel_limit", 503, "too many tunnels", "隧道数已达上限", "Try again later.", "请稍后再试。"},
	FlowLimit:       {"flow_limit", 503, "too many flows in this tunnel", "隧道内的流过多", "Close other connections.", "请关闭其他连接。"},
	FrameMalformed:  {"frame_malformed", 400, "a record of the tunnel is malformed", "隧道记录格式错误", "", ""},
	TunnelClosed:    {"tunnel_closed", 503, "the tunnel is closed", "隧道已关闭", "", ""},
	BudgetExceeded:  {"budget_exceeded", 400, "the peer sent more than its credit", "对端发送超出信用额度", "", ""},
	DestinationRule: {"destination_rule", 403, "this destination is not one of the application's", "目标地址不属于该应用", askAdmin, askAdminZH},
	PeerTimeout:     {"peer_timeout", 408, "the peer stopped answering", "对端无响应", "", ""},
	FrameRate:       {"frame_rate", 429, "too many control records", "控制记录过于频繁", "", ""},
	LocalUser:       {"local_user", 403, "this face serves another local user", "该本地入口不服务于此用户", "", ""},

	Shutdown:      {"shutdown", 503, "the gateway is shutting down", "网关正在关闭", "Try again.", "请重试。"},
	Reload:        {"reload", 503, "the configuration changed", "配置已变更", "Try again.", "请重试。"},
	InternalError: {"internal_error", 500, "an internal error", "内部错误", askAdmin, askAdminZH},
	Overload:      {"overload", 503, "the gateway is overloaded", "网关过载", "Try again later.", "请稍后再试。"},
}
