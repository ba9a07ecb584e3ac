// Package gitwork brings the files of a git repository at some ref to a folder of this machine, with the git that is
// installed here.
//
// It owns the cache of such folders, the authentication of git, and the wording of its failures. It must not know the
// server, or what becomes of the files.
//
// Invariants: no token or password is on a command line, in a file, or in what is said; a folder of the cache is used by one
// process at a time, and holds exactly one commit when it is handed out.
package gitwork
