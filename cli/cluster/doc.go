// Package cluster holds the commands on clusters and their jobs, a file per verb. Each has an Options struct that
// parsing fills and a function that acts on it.
//
// It must not know how the server fulfils a call.
package cluster
