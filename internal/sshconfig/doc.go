// Package sshconfig keeps what the user's ssh needs to reach clusters by their names: a key, an entry and a pinned host
// key per node, and one line in ~/.ssh/config that includes them.
//
// All of it stands in the folder ssh of SKY_HOME: id_ed25519 and id_ed25519.pub, made on first use; clusters.json, from
// which config and known_hosts are written. It must not know the API nor how a node is reached: the command that ssh
// runs as its proxy is given.
//
// Invariants:
//   - A user's own file is touched in one way: a marked block at its top is added or changed. Nothing of the user's is
//     read, moved or reformatted; mode and symbolic links stay.
//   - Files are replaced whole, under a lock, and only when their content changes.
//   - Entries of other servers, and of other SKY_HOMEs, are left alone.
package sshconfig
