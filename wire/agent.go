package wire

// Authentication is Table 16 (§9.3.1): an agent authenticates its user to the
// control center. With an empty UserAuthenticationList over a bound channel it
// is the identity report of clause 9.2 (Q25).
type Authentication struct {
	AgentID                  string     `json:"agentId"`
	UserID                   string     `json:"userId"`
	DeviceID                 string     `json:"deviceId"`
	UserAuthenticationMethod int        `json:"userAuthenticationMethod"` // MethodLocal or MethodThirdParty
	UserAuthenticationList   []Factor   `json:"userAuthenticationList,omitempty"`
	DeviceType               string     `json:"deviceType"`
	SystemType               string     `json:"systemType"`
	Longitude                Coordinate `json:"longitude"`
	Latitude                 Coordinate `json:"latitude"`
	IP                       string     `json:"ip"`
	Port                     int        `json:"port"`
	Timestamp                string     `json:"timestamp"`
}

// Factor is Table 17 (§9.3.1): one proof of who the user is. Its content is a
// secret: it is never logged and its String method hides it.
type Factor struct {
	AuthenticationType    int    `json:"authenticationType"` // 1 static password ... 7 iris
	AuthenticationContent string `json:"authenticationContent"`
}

// AuthenticationReply is Table 18 (§9.3.1).
type AuthenticationReply struct {
	Code           int    `json:"code"` // Success or Failure
	Result         string `json:"result"`
	AuthToken      string `json:"authToken,omitempty"`
	ExpirationDate string `json:"expirationDate,omitempty"`
}

// ResourceList is Table 19 (§9.3.2).
type ResourceList struct {
	AgentID      string     `json:"agentId"`
	UserID       string     `json:"userId"`
	DeviceID     string     `json:"deviceId"`
	KeyType      string     `json:"keyType"`
	Timestamp    string     `json:"timestamp"`
	ResourceList []Resource `json:"resourceList,omitempty"`
	Remark       string     `json:"remark,omitempty"`
}

// Resource is Table 20 (§9.3.2): one address of one application.
type Resource struct {
	AppID   string `json:"appId"`
	AppName string `json:"appName"`
	IP      string `json:"ip"`
	Port    int    `json:"port"`
}

// AgentStatus is Table 21 (§9.3.3).
type AgentStatus struct {
	AgentID     string `json:"agentId"`
	UserID      string `json:"userId"`
	DeviceID    string `json:"deviceId"`
	Timestamp   string `json:"timestamp"`
	IP          string `json:"ip"`
	Port        int    `json:"port"`
	CPUUsage    string `json:"cpuUsage,omitempty"`
	MemoryUsage string `json:"memoryUsage,omitempty"`
	DiskUsage   string `json:"diskUsage,omitempty"`
}

// AgentAlert is Table 22 (§9.3.4).
type AgentAlert struct {
	AgentID               string `json:"agentId"`
	UserID                string `json:"userId"`
	DeviceID              string `json:"deviceId"`
	Timestamp             string `json:"timestamp"`
	ExceptionAlertType    string `json:"exceptionAlertType"`
	ExceptionAlertLevel   int    `json:"exceptionAlertLevel"`
	ExceptionAlertContent string `json:"exceptionAlertContent"`
}
