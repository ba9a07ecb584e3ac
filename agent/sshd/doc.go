// Package sshd is the SSH server inside the agent: shells, commands, sftp and port forwarding on a node that has no SSH
// server of its own.
//
// It serves connections that it is handed and opens no port: the agent takes them from its HTTP socket, by an upgrade.
// It must not know the server, the cluster or jobs.
//
// Who may log in is said per connection, by whoever hands it over: the public keys that this connection may prove to
// have. Nothing is kept, so there is nothing to refresh or to revoke. The node proves itself by a host key made once
// and kept in the agent's folder.
//
// Invariants:
//   - Every name logs in as the user that the agent runs as: there is one user on a node.
//   - What a session starts belongs to the node (same namespaces, same mark) and outlives the connection unless it
//     minds the hangup, as under any SSH server.
//   - rsync and scp commands run without the user's shell files, whose output would break their protocols; a node that
//     lacks the programs runs the agent's own (packages rsyncd and scpd).
//   - Files of sftp are reached as the user would reach them: relative to home, with no jail.
package sshd
