// Package supervisor is the root of a node's process tree: `sky-agent init`.
//
// It starts the agent proper (`sky-agent serve`), starts it again when it dies, reaps orphans, and ends every process of
// the node when it is told to, or when the agent says that the node is to end itself. In a PID namespace of the node's
// own it is PID 1; elsewhere it makes itself the subreaper of what is below.
//
// It must not know of jobs or of the network. Invariants: one init per agent folder; jobs survive the agent proper; after
// init has exited by itself nothing of the node runs.
package supervisor
