// Package checkpoint takes a consistent picture of a folder that a running program writes to, on the node.
//
// It knows files, signals and commands; it knows nothing of jobs, epochs or servers. A picture is consistent: no file
// changed between the moment the folder was found quiet and the moment its last byte was hashed. What is not consistent
// is never given out.
package checkpoint
