//go:build !linux

package main

import "errors"

func (b *bench) labSyncs() error { return errors.New("needs Linux") }
