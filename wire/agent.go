package wire

import "fmt"

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

var authenticationTable = table[Authentication]{
	number: 16,
	fields: []field[Authentication]{
		text("agentId", id, func(m *Authentication) *string { return &m.AgentID }),
		text("userId", id, func(m *Authentication) *string { return &m.UserID }),
		text("deviceId", id, func(m *Authentication) *string { return &m.DeviceID }),
		oneOf("userAuthenticationMethod", MethodLocal, MethodThirdParty, func(m *Authentication) *int { return &m.UserAuthenticationMethod }),
		rows("userAuthenticationList", &factorTable, func(m *Authentication) *[]Factor { return &m.UserAuthenticationList }),
		text("deviceType", upTo(20, ans), func(m *Authentication) *string { return &m.DeviceType }),
		text("systemType", upTo(30, ans), func(m *Authentication) *string { return &m.SystemType }),
		degrees("longitude", MaxLongitude, func(m *Authentication) *Coordinate { return &m.Longitude }),
		degrees("latitude", MaxLatitude, func(m *Authentication) *Coordinate { return &m.Latitude }),
		text("ip", address, func(m *Authentication) *string { return &m.IP }),
		number("port", 0, 65535, func(m *Authentication) *int { return &m.Port }),
		text("timestamp", moment, func(m *Authentication) *string { return &m.Timestamp }),
	},
}

// Factor is Table 17 (§9.3.1): one proof of who the user is. Its content is a
// secret: it is never logged and its String method hides it.
type Factor struct {
	AuthenticationType    int    `json:"authenticationType"` // 1 static password ... 7 iris
	AuthenticationContent string `json:"authenticationContent"`
}

var factorTable = table[Factor]{
	number: 17,
	fields: []field[Factor]{
		integer("authenticationType", func(m *Factor) *int { return &m.AuthenticationType }, factorType),
		text("authenticationContent", upTo(500, ans), func(m *Factor) *string { return &m.AuthenticationContent }),
	},
}

// AuthenticationReply is Table 18 (§9.3.1).
type AuthenticationReply struct {
	Code           int    `json:"code"` // Success or Failure
	Result         string `json:"result"`
	AuthToken      string `json:"authToken,omitempty"`
	ExpirationDate string `json:"expirationDate,omitempty"`
}

var authenticationReplyTable = table[AuthenticationReply]{
	number: 18,
	fields: []field[AuthenticationReply]{
		oneOf("code", Success, Failure, func(m *AuthenticationReply) *int { return &m.Code }),
		text("result", upTo(0, ans), func(m *AuthenticationReply) *string { return &m.Result }),
		text("authToken", id, func(m *AuthenticationReply) *string { return &m.AuthToken }).as(onSuccess),
		text("expirationDate", moment, func(m *AuthenticationReply) *string { return &m.ExpirationDate }).as(onSuccess),
	},
	success: func(m *AuthenticationReply) int { return m.Code },
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

var resourceListTable = table[ResourceList]{
	number: 19,
	fields: []field[ResourceList]{
		text("agentId", id, func(m *ResourceList) *string { return &m.AgentID }),
		text("userId", id, func(m *ResourceList) *string { return &m.UserID }),
		text("deviceId", id, func(m *ResourceList) *string { return &m.DeviceID }),
		text("keyType", code, func(m *ResourceList) *string { return &m.KeyType }),
		text("timestamp", moment, func(m *ResourceList) *string { return &m.Timestamp }),
		rows("resourceList", &resourceTable, func(m *ResourceList) *[]Resource { return &m.ResourceList }),
		text("remark", upTo(0, hans), func(m *ResourceList) *string { return &m.Remark }).as(optional),
	},
}

// Resource is Table 20 (§9.3.2): one address of one application.
type Resource struct {
	AppID   string `json:"appId"`
	AppName string `json:"appName"`
	IP      string `json:"ip"`
	Port    int    `json:"port"`
}

var resourceTable = table[Resource]{
	number: 20,
	fields: []field[Resource]{
		text("appId", id, func(m *Resource) *string { return &m.AppID }),
		text("appName", upTo(40, hans), func(m *Resource) *string { return &m.AppName }),
		text("ip", address, func(m *Resource) *string { return &m.IP }),
		number("port", 0, 65535, func(m *Resource) *int { return &m.Port }),
	},
	key: func(m *Resource) string { return m.AppID },
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

var agentStatusTable = table[AgentStatus]{
	number: 21,
	fields: []field[AgentStatus]{
		text("agentId", id, func(m *AgentStatus) *string { return &m.AgentID }),
		text("userId", id, func(m *AgentStatus) *string { return &m.UserID }),
		text("deviceId", id, func(m *AgentStatus) *string { return &m.DeviceID }),
		text("timestamp", moment, func(m *AgentStatus) *string { return &m.Timestamp }),
		text("ip", address, func(m *AgentStatus) *string { return &m.IP }),
		number("port", 0, 65535, func(m *AgentStatus) *int { return &m.Port }),
		text("cpuUsage", usage, func(m *AgentStatus) *string { return &m.CPUUsage }).as(optional),
		text("memoryUsage", usage, func(m *AgentStatus) *string { return &m.MemoryUsage }).as(optional),
		text("diskUsage", usage, func(m *AgentStatus) *string { return &m.DiskUsage }).as(optional),
	},
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

var agentAlertTable = table[AgentAlert]{
	number: 22,
	fields: []field[AgentAlert]{
		text("agentId", id, func(m *AgentAlert) *string { return &m.AgentID }),
		text("userId", id, func(m *AgentAlert) *string { return &m.UserID }),
		text("deviceId", id, func(m *AgentAlert) *string { return &m.DeviceID }),
		text("timestamp", moment, func(m *AgentAlert) *string { return &m.Timestamp }),
		text("exceptionAlertType", upTo(20, digits), func(m *AgentAlert) *string { return &m.ExceptionAlertType }),
		number("exceptionAlertLevel", 1, 3, func(m *AgentAlert) *int { return &m.ExceptionAlertLevel }),
		text("exceptionAlertContent", upTo(0, hans), func(m *AgentAlert) *string { return &m.ExceptionAlertContent }),
	},
}

// factorType takes the types of Table 17, and the two digits of an extension
// profile (Q22).
func factorType(n int, p Profile) string {
	most := 7
	if p.ExtendedFactors {
		most = 99
	}
	if n < 1 || n > most {
		return fmt.Sprintf("%d, must be 1 to %d", n, most)
	}
	return ""
}

// String hides the content.
func (m Factor) String() string { return fmt.Sprintf("factor of type %d", m.AuthenticationType) }

// GoString hides the content from %#v, too.
func (m Factor) GoString() string { return m.String() }
