// Package proctree finds and ends process trees: by descent, by a marker in the environment, by cgroup.
//
// It must not know what a process is for. Invariant: a process is only signalled if its identity (process id and start
// time) was checked right before, so that a reused id hits nobody else.
//
// On systems without /proc only descent and process groups are known, by way of ps.
package proctree
