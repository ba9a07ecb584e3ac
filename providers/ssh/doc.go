// Package ssh makes nodes on machines that people already have: pools of hosts that are reached by SSH, with nothing
// installed on them beforehand.
//
// It owns the pools file, the connections (one per host, shared by all that goes there), the pinned host keys and the choice
// of hosts. What happens on a host is done by the agent's program, brought over once (agent/sharedhost); a share of a host
// is claimed there, by that program, so that no two servers give out the same GPU.
//
// It must not know what agents do, or whose clusters these are beyond their tags. Invariants:
//   - the truth about a node is on its host; what this package notes down (below Home/ssh) says where to look, and is written
//     before anything is made there;
//   - all nodes of a cluster are made or none, at most one per host;
//   - a host that does not answer is never taken for empty: its nodes are listed as they were last known, and a delete that
//     can't reach one says so instead of being done;
//   - a host key that has changed ends everything with that host until the user has seen to it;
//   - passwords are never written anywhere, nor seen in a list of processes.
package ssh
