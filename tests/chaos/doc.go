// Package chaos kills the real server and the real agents, at named points and at random moments, and checks that
// nothing is lost, doubled or left behind (faults 1, 9, 10, 17, 19, 23, 27 and invariants I1-I3, I6-I8, I13, I16 of the
// reliability page).
//
// It owns a harness of one instance (its own SKY_HOME, a supervisor that restarts a killed server at once), a load
// through the Go client of package api, and an oracle: what was acknowledged, and how it must end; a ledger file that
// every job of the load writes to; the processes and folders there really are. It knows nothing of workflows.
//
// Environment:
//
//	SKYLOOM_BIN=/folder       programs to test; without it they are built first
//	SKYLOOM_CHAOS_KILLS=N     random kills of the server; 100 or more also visit every (operation, point) pair
//	SKYLOOM_CHAOS_SEED=N      repeats a run's choices; the seed is printed
package chaos
