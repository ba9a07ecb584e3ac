// Package shim runs one script (a job's phase on a node, or a hook) so that it outlives the agent's restart.
//
// A shim is a small process of its own between the agent and the script. It holds a lock while anything of the script
// lives, keeps orphans below itself (it is their subreaper), lets the kernel write the output straight to the log file,
// and leaves an exit record. An Handle names the folder of such an execution; any later agent finds it again by that.
//
// It must not know of jobs, clusters or queues.
//
// Invariants: an execution happens at most once per folder and name (the started mark); the exit record appears whole
// or not at all and has its room on the disk from the start; once the lock is free no process of the script is left,
// unless the shim itself was killed, which shows by the missing record.
package shim
