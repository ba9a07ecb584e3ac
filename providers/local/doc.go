// Package local makes nodes of this machine: each is a process tree with a home, an agent, a loopback address and a
// port of its own; as root on Linux also with PID and mount namespaces and a cgroup of its own.
//
// It must not know what agents do, or whose clusters these are beyond their tags. Invariants:
//   - what a node is stands in its folder's record.json, written whole before its processes start, so that a provider
//     killed at any moment loses no node: the next one finds it by the folder, and its processes by the config file
//     they were started with, by their cgroup or by the mark in their environment;
//   - all changes of a cluster happen under the flock of the cluster; GPUs and addresses are given out under one more;
//   - a delete answers only once every process of the node is seen to be gone;
//   - processes outlive the server: they are started detached and never depend on it.
//
// Layout below Root (0700):
//
//	NAME-HASH/nodeK/record.json   what the node is and what it shall be
//	NAME-HASH/nodeK/node.json     what its agent starts from
//	NAME-HASH/nodeK/{home,agent,tmp,init.log}
//	s/HASH-K.sock                 the agent's socket (elsewhere if Root's path is long)
//	bin/SHA/sky-agent             the agents' program
//	locks/, trash/
package local
