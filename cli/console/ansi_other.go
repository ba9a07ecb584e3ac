//go:build !windows

package console

func enableANSI(*Console) {}
