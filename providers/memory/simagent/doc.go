// Package simagent simulates the agents of a cloud's nodes in one process: they speak the agent's protocol over
// in-memory connections, keep a job queue, events, an idle rule and hooks, and run nothing.
//
// A job's script is not executed but read (see the table below), which gives its duration, output and exit code. Time
// comes from a Clock, so that hours pass at once where a test wants it.
//
//	echo TEXT        prints TEXT
//	sleep SECONDS    takes that long
//	exit CODE, false ends the script
//	anything else    takes no time and prints nothing
//
// Of the environment only the variables of an array's element are known: $NAME and ${NAME} stand for their values.
//
// It must not know the cloud: the cloud says which node a connection is for, when a node dies, and is told when a node
// ends itself. Invariants: those of agentapi (submitting is idempotent by key, lower epochs are refused, events are kept
// until acknowledged); an idle agent holds no goroutine, also while its events are streamed; with a state file what was answered
// survives the process.
package simagent
