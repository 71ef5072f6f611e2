// Package demo is `yumen demo`: a whole site on one machine (control center,
// gateway, agent, applications), made by the same steps as a real one and run
// over real sockets, without root, domain or container.
//
//	layout.go   makes the folders: keys by enrolment, configuration files
//	site.go     runs the roles
//	apps.go     the demo applications
//	story.go    what is printed
//	check.go    --check: the whole story, using only what demo.json holds
//	tlcp.go     a browser that speaks TLCP, and the steps over TLCP
package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// InfoFile is the file that tells scripts and people everything about a demo.
const InfoFile = "demo.json"

// Info is demo.json. Paths are absolute.
type Info struct {
	Dir     string      `json:"dir"`
	Socket  string      `json:"socket"` // of the demo itself: POST /control/stop, /control/start
	CAFile  string      `json:"ca_file"`
	TLCP    TLCPInfo    `json:"tlcp"`
	Gateway GatewayInfo `json:"gateway"`
	Control ControlInfo `json:"control"`
	Agent   AgentInfo   `json:"agent"`
	Login   string      `json:"login_host"`
	Issuer  string      `json:"issuer"`
	Apps    []AppInfo   `json:"apps"`
	Users   []UserInfo  `json:"users"`

	guard, guardNote string // where it is, or why there is none
}

// TLCPInfo says where TLCP is spoken and what a client of it needs. The ports
// are those of TLS: each takes both.
type TLCPInfo struct {
	CAFile  string `json:"ca_file"` // root of TLCP
	Gateway string `json:"gateway"` // host:port of the gateway
	Control string `json:"control"` // host:port of the control center
	Host    string `json:"host"`    // a server name that the gateway has a pair for
}

// GatewayInfo says where the gateway is.
type GatewayInfo struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port on loopback
	Port    int    `json:"port"`
	Socket  string `json:"socket"`
	Metrics string `json:"metrics"` // host:port of /metrics and /healthz
	Config  string `json:"config"`
	Audit   string `json:"audit"`
}

// ControlInfo says where the control center is.
type ControlInfo struct {
	ID     string `json:"id"`
	URL    string `json:"url"`
	Socket string `json:"socket"`
	Config string `json:"config"`
	Audit  string `json:"audit"`
}

// AgentInfo says where the agent is.
type AgentInfo struct {
	ID       string `json:"id"`
	DeviceID string `json:"device_id"`
	Socket   string `json:"socket"`
	SOCKS5   string `json:"socks5"`
	Config   string `json:"config"`
	UserID   string `json:"user_id"` // who signs in on it at the start
}

// AppInfo is one application.
type AppInfo struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	URL     string `json:"url,omitzero"`     // for browsers
	Address string `json:"address,omitzero"` // for agents
	Backend string `json:"backend"`
	Keys    string `json:"keys,omitzero"` // of its connector
}

// UserInfo is a user of the laboratory.
type UserInfo struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Password string `json:"password"`
}

// The cast.
const (
	Portal  = "APP00000001" // HTTP; alice may
	Finance = "APP00000002" // HTTP; alice may not
	Echo    = "APP00000003" // TCP through the agent; alice may
)

// App returns the application with this id, or nil.
func (i *Info) App(id string) *AppInfo {
	for k := range i.Apps {
		if i.Apps[k].ID == id {
			return &i.Apps[k]
		}
	}
	return nil
}

// PortalAddress returns host:port of the portal's application.
func (i *Info) PortalAddress() string { return hostPort(i.App(Portal).Backend) }

// User returns the user with this name, or nil.
func (i *Info) User(name string) *UserInfo {
	for k := range i.Users {
		if i.Users[k].Name == name {
			return &i.Users[k]
		}
	}
	return nil
}

// ReadInfo reads DIR/demo.json.
func ReadInfo(dir string) (*Info, error) {
	raw, err := os.ReadFile(filepath.Join(dir, InfoFile))
	if err != nil {
		return nil, fmt.Errorf("read demo: %w", err)
	}
	i := &Info{}
	if err := json.Unmarshal(raw, i); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, InfoFile), err)
	}
	return i, nil
}

func (i *Info) write() error {
	raw, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("write demo: %w", err)
	}
	if err := os.WriteFile(filepath.Join(i.Dir, InfoFile), append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write demo: %w", err)
	}
	return nil
}
