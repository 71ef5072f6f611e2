package wire

// DeviceIdentity is Table 4 (§7.3.1): the gateway proves its device to the
// control center, and reports its identity at least every 60 s (Q25).
type DeviceIdentity struct {
	GatewayID  string `json:"gatewayId"`
	DeviceID   string `json:"deviceId"`
	DeviceName string `json:"deviceName"`
	DeviceType string `json:"deviceType"`
	SystemType string `json:"systemType"`
	IP         string `json:"ip"`
	Port       int    `json:"port"`
	Timestamp  string `json:"timestamp"`
}

var deviceIdentityTable = table[DeviceIdentity]{
	number: 4,
	fields: []field[DeviceIdentity]{
		text("gatewayId", id, func(m *DeviceIdentity) *string { return &m.GatewayID }),
		text("deviceId", id, func(m *DeviceIdentity) *string { return &m.DeviceID }),
		text("deviceName", upTo(40, hans), func(m *DeviceIdentity) *string { return &m.DeviceName }),
		text("deviceType", upTo(20, ans), func(m *DeviceIdentity) *string { return &m.DeviceType }),
		text("systemType", upTo(30, ans), func(m *DeviceIdentity) *string { return &m.SystemType }),
		text("ip", address, func(m *DeviceIdentity) *string { return &m.IP }),
		number("port", 0, 65535, func(m *DeviceIdentity) *int { return &m.Port }),
		text("timestamp", moment, func(m *DeviceIdentity) *string { return &m.Timestamp }),
	},
}

// Reply is Table 5 (§7.3.1), the answer to Table 4. It is also the answer to
// every message for which the standard gives none (Q9).
type Reply struct {
	Code   int    `json:"code"` // Success or Failure
	Result string `json:"result"`
}

var replyTable = table[Reply]{
	number: 5,
	fields: []field[Reply]{
		oneOf("code", Success, Failure, func(m *Reply) *int { return &m.Code }),
		text("result", upTo(0, ans), func(m *Reply) *string { return &m.Result }),
	},
}

// GrantList is Table 6 (§7.3.2), the access grant list (访问授权清单). An absent
// or empty Data grants nothing.
type GrantList struct {
	GatewayID string  `json:"gatewayId"`
	DeviceID  string  `json:"deviceId"`
	KeyType   string  `json:"keyType"`
	Timestamp string  `json:"timestamp"`
	Data      []Grant `json:"data,omitempty"`
	Remark    string  `json:"remark,omitempty"`
}

var grantListTable = table[GrantList]{
	number: 6,
	fields: []field[GrantList]{
		text("gatewayId", id, func(m *GrantList) *string { return &m.GatewayID }),
		text("deviceId", id, func(m *GrantList) *string { return &m.DeviceID }),
		text("keyType", code, func(m *GrantList) *string { return &m.KeyType }),
		text("timestamp", moment, func(m *GrantList) *string { return &m.Timestamp }),
		rows("data", &grantTable, func(m *GrantList) *[]Grant { return &m.Data }),
		text("remark", upTo(0, hans), func(m *GrantList) *string { return &m.Remark }).as(optional),
	},
}

// Grant is Table 7 (§7.3.2): what one user may reach from one device until
// ExpirationDate. An absent or empty AppIDList grants nothing (M56).
type Grant struct {
	UserID              string   `json:"userId"`
	DeviceID            string   `json:"deviceId"`
	AuthenticationToken string   `json:"authenticationToken"`
	ExpirationDate      string   `json:"expirationDate"`
	AppIDList           []string `json:"appIdList,omitempty"`
}

var grantTable = table[Grant]{
	number: 7,
	fields: []field[Grant]{
		text("userId", id, func(m *Grant) *string { return &m.UserID }),
		text("deviceId", id, func(m *Grant) *string { return &m.DeviceID }),
		text("authenticationToken", id, func(m *Grant) *string { return &m.AuthenticationToken }).alias("authToken", "authentication Token", "authentication\nToken"),
		text("expirationDate", moment, func(m *Grant) *string { return &m.ExpirationDate }),
		texts("appIdList", id, func(m *Grant) *[]string { return &m.AppIDList }),
	},
	key: func(m *Grant) string { return m.UserID },
}

// PolicyList is Table 8 (§7.3.3).
type PolicyList struct {
	GatewayID  string   `json:"gatewayId"`
	DeviceID   string   `json:"deviceId"`
	Timestamp  string   `json:"timestamp"`
	PolicyList []Policy `json:"policyList,omitempty"`
	Remark     string   `json:"remark,omitempty"`
}

var policyListTable = table[PolicyList]{
	number: 8,
	fields: []field[PolicyList]{
		text("gatewayId", id, func(m *PolicyList) *string { return &m.GatewayID }),
		text("deviceId", id, func(m *PolicyList) *string { return &m.DeviceID }),
		text("timestamp", moment, func(m *PolicyList) *string { return &m.Timestamp }),
		rows("policyList", &policyTable, func(m *PolicyList) *[]Policy { return &m.PolicyList }),
		text("remark", upTo(0, hans), func(m *PolicyList) *string { return &m.Remark }).as(optional),
	},
}

// Policy is Table 9 (§7.3.3). The grammars of PolicyData are those of package
// access/policy.
type Policy struct {
	PolicyID   string `json:"policyId"`
	PolicyName string `json:"policyName"`
	PolicyType string `json:"policyType"`
	PolicyData string `json:"policyData"` // at most 40 characters
}

var policyTable = table[Policy]{
	number: 9,
	fields: []field[Policy]{
		text("policyId", id, func(m *Policy) *string { return &m.PolicyID }),
		text("policyName", upTo(40, hans), func(m *Policy) *string { return &m.PolicyName }),
		text("policyType", code, func(m *Policy) *string { return &m.PolicyType }),
		text("policyData", upTo(40, ans), func(m *Policy) *string { return &m.PolicyData }),
	},
	key: func(m *Policy) string { return m.PolicyID },
}

// GatewayStatus is Table 10 (§7.3.4). Usage is NNN.NN%, seven characters (Q7).
type GatewayStatus struct {
	GatewayID   string `json:"gatewayId"`
	DeviceID    string `json:"deviceId"`
	Timestamp   string `json:"timestamp"`
	CPUUsage    string `json:"cpuUsage,omitempty"`
	MemoryUsage string `json:"memoryUsage,omitempty"`
	DiskUsage   string `json:"diskUsage,omitempty"`
}

var gatewayStatusTable = table[GatewayStatus]{
	number: 10,
	fields: []field[GatewayStatus]{
		text("gatewayId", id, func(m *GatewayStatus) *string { return &m.GatewayID }),
		text("deviceId", id, func(m *GatewayStatus) *string { return &m.DeviceID }),
		text("timestamp", moment, func(m *GatewayStatus) *string { return &m.Timestamp }),
		text("cpuUsage", usage, func(m *GatewayStatus) *string { return &m.CPUUsage }).as(optional),
		text("memoryUsage", usage, func(m *GatewayStatus) *string { return &m.MemoryUsage }).as(optional),
		text("diskUsage", usage, func(m *GatewayStatus) *string { return &m.DiskUsage }).as(optional),
	},
}

// GatewayAlert is Table 11 (§7.3.5).
type GatewayAlert struct {
	GatewayID             string `json:"gatewayId"`
	DeviceID              string `json:"deviceId"`
	Timestamp             string `json:"timestamp"` // when it happened; may be old in a replay (Q30)
	ExceptionAlertType    string `json:"exceptionAlertType"`
	ExceptionAlertLevel   int    `json:"exceptionAlertLevel"`
	ExceptionAlertContent string `json:"exceptionAlertContent"`
}

var gatewayAlertTable = table[GatewayAlert]{
	number: 11,
	fields: []field[GatewayAlert]{
		text("gatewayId", id, func(m *GatewayAlert) *string { return &m.GatewayID }),
		text("deviceId", id, func(m *GatewayAlert) *string { return &m.DeviceID }),
		text("timestamp", moment, func(m *GatewayAlert) *string { return &m.Timestamp }),
		text("exceptionAlertType", upTo(20, digits), func(m *GatewayAlert) *string { return &m.ExceptionAlertType }),
		number("exceptionAlertLevel", 1, 3, func(m *GatewayAlert) *int { return &m.ExceptionAlertLevel }),
		text("exceptionAlertContent", upTo(0, hans), func(m *GatewayAlert) *string { return &m.ExceptionAlertContent }),
	},
}
