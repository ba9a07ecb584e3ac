// Package e2e drives the three programs as a user would, on this machine's own infra, by scripts in
// testdata/script.
//
// Scripts in shared/ run against one server. Each of them acts as a user of its own and names its clusters after
// itself, so that `-a` means its own clusters. Scripts in own/ have a SKY_HOME, and so a server, to themselves. Both
// end with nothing left: every process that carries the tests' temporary folder in its command line, environment or
// working folder when the package ends is a failure.
//
// Besides the built-in commands of testscript, the scripts have those of commands_test.go.
package e2e
