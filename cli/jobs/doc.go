// Package jobs holds the commands on managed jobs, a file per verb. Each has an Options struct that parsing fills and a
// function that acts on it.
//
// It must not know how the server carries a job out. Interrupting a command never ends a job.
package jobs
