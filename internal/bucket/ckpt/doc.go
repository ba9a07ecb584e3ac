// Package ckpt lays checkpoints of managed jobs out in a bucket.
//
// It owns the layout of a task's folder, what is missing there of a folder's content, the URLs that bring it there and back, and
// what may be deleted. It must not know how a node is reached: the caller carries URLs to it. Which checkpoints are known is
// told by the caller as well; what lies in the bucket is no proof.
//
// Layout, below the address that a task names:
//
//	<installation>/job-<id>/task-<index>/
//	  blobs/<sha-256>                    the content of a file, as it is; equal content once
//	  checkpoints/<time>-<mark>.json     a checkpoint: job, attempt, and per node the files with their blobs
//
// Invariants:
//   - A checkpoint's JSON is written after everything that it names was seen in the bucket, at its full size.
//   - A blob's name is the hash of its bytes, so whoever writes one twice, or late, changes nothing.
//   - Nothing is deleted that a checkpoint names which the caller keeps, and nothing outside the task's folder.
//   - One caller at a time saves into a folder; reading goes on meanwhile.
package ckpt
