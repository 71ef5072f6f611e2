//go:build !unix

package spool

func isQuota(error) bool { return false }
