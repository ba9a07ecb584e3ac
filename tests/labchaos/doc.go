// Package labchaos makes the hosts of a lab (tests/lab) fail under clusters and managed jobs: hosts are killed, cut off for
// a while and for good, and rebooted, agents' clocks jump by five minutes, the server, agents and nodes are killed. What
// must hold is checked against what really runs on the hosts and against ledgers that the jobs write there.
//
// It owns the faults, and the part of the oracle that looks at hosts; tests/rig has the server, the load and the part that
// reads the API. It needs Linux and root; elsewhere its tests say so and skip.
//
// Environment:
//
//	SKYLOOM_BIN=/folder      programs to test; without it they are built first
//	SKYLOOM_LAB_EVENTS=N     faults on the hosts under clusters; 20 if unset, closer together then
//	SKYLOOM_LAB_JOBS=N       managed jobs; 20 if unset
//	SKYLOOM_LAB_KILLS=N      faults under managed jobs; 10 if unset, closer together then
//	SKYLOOM_LAB_SEED=N       repeats a run's choices; the seed is printed
package labchaos
