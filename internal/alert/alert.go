// Package alert holds the catalogue of alerts, Tables 11, 15 and 22 of CSA GCR
// 002-2025 (§7.3.5, §8.3.3, §9.3.4), and the Sink through which a part of
// Yumen raises one.
//
// A part gets its Sink by Config and never knows where alerts go: to the
// control center, to the agents concerned, to the log. Clause 7.4 demands a
// published trigger for policy violations, system faults and abnormal traffic;
// the first digit of a code is that class.
package alert

import (
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Level is exceptionAlertLevel of Table 11.
type Level int

// The three levels of clause 7.4.
const (
	Normal  Level = 1
	Warning Level = 2
	Severe  Level = 3
)

// Code is exceptionAlertType: digits and dots, "class.number" (Q18).
type Code string

// Alert is one event worth a person's attention. Detail is a short English
// phrase with the particulars; it carries no secret.
type Alert struct {
	Code      Code
	Level     Level // zero: the catalogue's level
	Time      time.Time
	Reason    reason.Reason
	UserID    string
	DeviceID  string
	AppID     string
	SessionID string
	Remote    string
	Detail    string
	Repeats   int // earlier alerts of the same key that damping held back
}

// Sink takes alerts. Raise never blocks and may be called from any goroutine;
// what a sink cannot take it counts.
type Sink interface{ Raise(Alert) }

// Func makes a function a [Sink].
type Func func(Alert)

// Raise calls f.
func (f Func) Raise(a Alert) { f(a) }

// Discard drops every alert.
var Discard Sink = Func(func(Alert) {})
