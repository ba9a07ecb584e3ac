// Package claims keeps who holds which part of a machine that several clusters share: CPUs, memory and single GPUs.
//
// The ledger is a folder of the machine that every user may write to. Each claim is a file of its own, written whole by
// the user it belongs to; a lock file orders all changes. So a claim is there or not, whatever is killed when, and no
// user but root can change another's.
//
// It must not know what a cluster runs, or how a node is started. Invariants, under the lock:
//   - no device is in two live claims, and CPUs and memory of all live claims fit the machine;
//   - a claim that is stale (its processes are gone for sure) counts as if it were not there, and is removed by whoever may;
//   - a doubt keeps a claim alive: a share that is not used costs less than one that is given out twice.
package claims
