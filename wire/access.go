package wire

// AccessRequest is Table 12 (§8.3.1): an agent asks for one application.
type AccessRequest struct {
	AgentID   string `json:"agentId"`
	UserID    string `json:"userId"`
	DeviceID  string `json:"deviceId"`
	AuthToken string `json:"authToken"`
	AppID     string `json:"appId"`
	AppName   string `json:"appName"`
	IP        string `json:"ip"`
	Port      int    `json:"port"`
}

var accessRequestTable = table[AccessRequest]{
	number: 12,
	fields: []field[AccessRequest]{
		text("agentId", id, func(m *AccessRequest) *string { return &m.AgentID }),
		text("userId", id, func(m *AccessRequest) *string { return &m.UserID }),
		text("deviceId", id, func(m *AccessRequest) *string { return &m.DeviceID }),
		text("authToken", id, func(m *AccessRequest) *string { return &m.AuthToken }),
		text("appId", id, func(m *AccessRequest) *string { return &m.AppID }),
		text("appName", upTo(40, hans), func(m *AccessRequest) *string { return &m.AppName }),
		text("ip", address, func(m *AccessRequest) *string { return &m.IP }),
		number("port", 0, 65535, func(m *AccessRequest) *int { return &m.Port }),
	},
}

// AccessReply is Table 13 (§8.3.1).
type AccessReply struct {
	Code   int    `json:"code"` // Success or Failure
	Result string `json:"result"`
}

var accessReplyTable = table[AccessReply]{
	number: 13,
	fields: []field[AccessReply]{
		oneOf("code", Success, Failure, func(m *AccessReply) *int { return &m.Code }),
		text("result", upTo(0, ans), func(m *AccessReply) *string { return &m.Result }),
	},
}

// Renewal is Table 14 (§8.3.2): the agent proves itself again, with a newer
// token or the same. Whose it is comes from the tunnel (Q16).
type Renewal struct {
	AuthToken  string `json:"authToken"`
	UpdateTime string `json:"updateTime"`
}

var renewalTable = table[Renewal]{
	number: 14,
	fields: []field[Renewal]{
		text("authToken", id, func(m *Renewal) *string { return &m.AuthToken }),
		text("updateTime", moment, func(m *Renewal) *string { return &m.UpdateTime }),
	},
}

// Notice is Table 15 (§8.3.3): the gateway alerts an agent.
type Notice struct {
	GatewayID             string `json:"gatewayId"`
	DeviceID              string `json:"deviceId"`
	Timestamp             string `json:"timestamp"`
	ExceptionAlertType    string `json:"exceptionAlertType"`
	ExceptionAlertLevel   int    `json:"exceptionAlertLevel"`
	ExceptionAlertContent string `json:"exceptionAlertContent"`
}

var noticeTable = table[Notice]{
	number: 15,
	fields: []field[Notice]{
		text("gatewayId", id, func(m *Notice) *string { return &m.GatewayID }),
		text("deviceId", id, func(m *Notice) *string { return &m.DeviceID }),
		text("timestamp", moment, func(m *Notice) *string { return &m.Timestamp }),
		text("exceptionAlertType", upTo(20, digits), func(m *Notice) *string { return &m.ExceptionAlertType }),
		number("exceptionAlertLevel", 1, 3, func(m *Notice) *int { return &m.ExceptionAlertLevel }),
		text("exceptionAlertContent", upTo(0, hans), func(m *Notice) *string { return &m.ExceptionAlertContent }),
	},
}
