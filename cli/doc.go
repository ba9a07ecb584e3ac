// Package cli is the command `sky`: the tree of commands, and the one place where errors become messages and exit
// codes. A folder per noun, a file per verb; package session is what they share.
//
// It must stay thin: it talks to the server over HTTP only, and links neither the workflow engine, nor a cloud's SDK,
// nor the server (a test holds that). It does nothing at start-up that the command at hand doesn't need.
//
// Exit codes: 0 good; 1 failed or a question was answered with no; 2 wrong usage; 100 to 103 what became of a job;
// 130 interrupted.
package cli
