// Package sharedhost is what the agent's program does on a machine that several clusters share: `sky-agent host VERB`.
//
// It is called over SSH, once per operation and host, and does everything there is to do on the host in that one call: it
// tells what the machine has, claims a share of it, makes, starts, stops and removes nodes. It needs nothing of the machine
// but a kernel; where root can be had by sudo, it takes that by itself.
//
// It must not know what a cluster runs, nor of the server's side. Invariants:
//   - a node holds its claim from before its processes start until after they are seen to be gone;
//   - what a node is stands in its folder's record.json, written whole before its processes start; a call that is killed at
//     any moment loses no node and no claim;
//   - every call is idempotent; all changes of a node happen under its lock;
//   - the answer stands between marks, so that whatever a login shell prints does no harm.
//
// Layout of a root (0700, of the login's user):
//
//	bin/SHA/sky-agent             the agents' program
//	nodes/NAME-HASH-RANK/         record.json, node.json, init.log, home/, agent/, tmp/
//	s/HASH-RANK.sock              the agent's socket
//	locks/, trash/
package sharedhost
