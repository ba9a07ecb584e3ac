//go:build unix

// Package rig is what the chaos tests have in common: a server's process that is started again whenever it is killed, a
// load through the Go client of package api in which every request has an end that it must come to, and the part of the
// oracle that reads the API: no acknowledged request is lost, no row goes backwards.
//
// It must not know where nodes run, nor of faults: the tests bring both.
package rig
