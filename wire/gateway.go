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

// Reply is Table 5 (§7.3.1), the answer to Table 4. It is also the answer to
// every message for which the standard gives none (Q9).
type Reply struct {
	Code   int    `json:"code"` // Success or Failure
	Result string `json:"result"`
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

// Grant is Table 7 (§7.3.2): what one user may reach from one device until
// ExpirationDate. An absent or empty AppIDList grants nothing (M56).
type Grant struct {
	UserID              string   `json:"userId"`
	DeviceID            string   `json:"deviceId"`
	AuthenticationToken string   `json:"authenticationToken"`
	ExpirationDate      string   `json:"expirationDate"`
	AppIDList           []string `json:"appIdList,omitempty"`
}

// PolicyList is Table 8 (§7.3.3).
type PolicyList struct {
	GatewayID  string   `json:"gatewayId"`
	DeviceID   string   `json:"deviceId"`
	Timestamp  string   `json:"timestamp"`
	PolicyList []Policy `json:"policyList,omitempty"`
	Remark     string   `json:"remark,omitempty"`
}

// Policy is Table 9 (§7.3.3). The grammars of PolicyData are those of package
// access/policy.
type Policy struct {
	PolicyID   string `json:"policyId"`
	PolicyName string `json:"policyName"`
	PolicyType string `json:"policyType"`
	PolicyData string `json:"policyData"` // at most 40 characters
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

// GatewayAlert is Table 11 (§7.3.5).
type GatewayAlert struct {
	GatewayID             string `json:"gatewayId"`
	DeviceID              string `json:"deviceId"`
	Timestamp             string `json:"timestamp"` // when it happened; may be old in a replay (Q30)
	ExceptionAlertType    string `json:"exceptionAlertType"`
	ExceptionAlertLevel   int    `json:"exceptionAlertLevel"`
	ExceptionAlertContent string `json:"exceptionAlertContent"`
}
