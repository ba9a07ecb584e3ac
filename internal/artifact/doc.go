// Package artifact keeps files by content: blobs named by their SHA-256, and the manifests that name them. The server
// holds what clients uploaded in one, an agent what is on its way to a folder.
//
// It owns one folder and its layout. It must not know whose files they are; what may be collected is told by the caller.
// One process uses a folder at a time.
//
// Layout:
//
//	segments/            small blobs, many to a file
//	blobs/ab/abcd…       bigger blobs, durable
//	manifests/ab/abcd…   durable manifests, in wire form
//	pending/             bigger blobs that are whole, but not yet forced to disk; tmp-* are being written
//
// Invariants:
//   - What stands under blobs/ and manifests/ was forced to disk before it got there: after a crash of the machine
//     nothing there is empty or cut. What is found under pending/, or in a segment that was open, is checked at the start.
//   - A blob is checked when it is put; nothing half done is ever visible.
//   - Forcing to disk is done once per Commit, not per blob: a tree of 200,000 files must not cost as many disk flushes.
//   - A manifest that PutManifest calls complete stays so until the caller lets go of it.
package artifact
