// Package e2essh runs the whole product against real hosts: the programs as processes in the network of a lab (tests/lab),
// the hosts with nothing but sshd on them. It needs Linux and root; elsewhere its tests say so and skip.
//
// SKYLOOM_E2E_BIN names a folder with built programs; without it they are built. SKYLOOM_E2E_SSH=all runs the long ones
// (`make e2e-ssh`), SKYLOOM_LOG_MB how large the log of TestLogs is.
package e2essh
