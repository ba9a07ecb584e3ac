// Package activities holds the side effects of the workflows, by theme: requests and rows (record.go), choosing a place
// (plan.go), nodes (provision.go), files (files.go), jobs (jobs.go), the node's rules (node.go), upkeep (reap.go).
//
// It owns no decision: what to do next is decided by pure packages and recorded by the workflow. It must not import
// the workflows. Each activity is idempotent, and says what makes it so.
//
// Invariants: whatever may have been created can be found by tag and token, and is deleted or adopted, never guessed;
// a secret is resolved here and handed to a node, and never returned to a workflow.
package activities
