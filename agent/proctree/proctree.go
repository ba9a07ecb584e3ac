package proctree

import (
	"context"
	"os"
	"slices"
	"syscall"
	"time"
)

// Proc is the identity of a process.
type Proc struct {
	PID int `json:"pid"`
	// Start is the start time in ticks since the machine came up, as the kernel tells; 0 where it is not known.
	Start uint64 `json:"start,omitempty"`
}

// Entry is one line of the process table.
type Entry struct {
	Proc
	Parent  int
	Group   int
	Session int
	Zombie  bool
}

// Self is this process.
func Self() Proc { p, _ := Find(os.Getpid()); return p }

// Find gives the identity of a living process.
func Find(pid int) (Proc, bool) {
	e, ok := stat(pid)
	return e.Proc, ok && !e.Zombie
}

// Alive says that the process still runs.
func (p Proc) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	q, ok := Find(p.PID)
	return ok && (p.Start == 0 || q.Start == p.Start)
}

// Signal sends a signal to the process if it still is the same.
func (p Proc) Signal(sig syscall.Signal) {
	if p.Alive() {
		syscall.Kill(p.PID, sig)
	}
}

// Descendants lists the living processes below a living one, without itself: none below one that has ended, or that was never
// there. (Below number 0 there is everything that runs on the machine.)
func Descendants(p Proc) []Proc {
	if !p.Alive() {
		return nil
	}
	return below(Table(), p.PID)
}

func below(table []Entry, root int) []Proc {
	children := make(map[int][]Entry, len(table))
	for _, e := range table {
		children[e.Parent] = append(children[e.Parent], e)
	}
	var out []Proc
	seen := map[int]bool{root: true}
	todo := []int{root}
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		for _, e := range children[p] {
			if seen[e.PID] {
				continue
			}
			seen[e.PID] = true
			todo = append(todo, e.PID)
			if !e.Zombie {
				out = append(out, e.Proc)
			}
		}
	}
	return out
}

// Finder lists processes that are to end.
type Finder func() []Proc

// Union joins finders.
func Union(fs ...Finder) Finder {
	return func() []Proc {
		var out []Proc
		for _, f := range fs {
			for _, p := range f() {
				if !slices.Contains(out, p) {
					out = append(out, p)
				}
			}
		}
		return out
	}
}

// End sends TERM to what find lists, and KILL to what is left after grace, again and again until nothing is found.
// It returns ctx's error if that takes too long; the caller then knows that something may still run.
func End(ctx context.Context, find Finder, grace time.Duration) error {
	procs := find()
	if len(procs) == 0 {
		return nil
	}
	if grace > 0 {
		for _, p := range procs {
			p.Signal(syscall.SIGTERM)
			p.Signal(syscall.SIGCONT) // a stopped process must wake to take the signal
		}
		deadline := time.Now().Add(grace)
		for pause := 2 * time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 100*time.Millisecond) {
			if err := sleep(ctx, pause); err != nil {
				return err
			}
			if !anyAlive(procs) {
				if procs = find(); len(procs) == 0 {
					return nil
				}
			}
		}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		procs = find()
		if len(procs) == 0 {
			return nil
		}
		for _, p := range procs {
			p.Signal(syscall.SIGKILL)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func anyAlive(procs []Proc) bool {
	for _, p := range procs {
		if p.Alive() {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
