//go:build !linux

package proxy

import "net"

func boundSendBuffer(net.Conn) {}
