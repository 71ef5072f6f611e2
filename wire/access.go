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

// AccessReply is Table 13 (§8.3.1).
type AccessReply struct {
	Code   int    `json:"code"` // Success or Failure
	Result string `json:"result"`
}

// Renewal is Table 14 (§8.3.2): the agent proves itself again, with a newer
// token or the same. Whose it is comes from the tunnel (Q16).
type Renewal struct {
	AuthToken  string `json:"authToken"`
	UpdateTime string `json:"updateTime"`
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
