// Package ssh reaches nodes with the real OpenSSH programs: ssh, scp, sftp, port forwarding, and rsync.
//
// A server with a cluster of two nodes on `local` is brought up once, by the programs themselves, under a PATH that has
// neither rsync nor scp: on the nodes the agent's own are at work. What this machine lacks (ssh, rsync, sshd) is skipped
// by name. SKYLOOM_BIN names a folder with the programs; without it they are built.
package ssh
