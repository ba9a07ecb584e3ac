//go:build unix

package claims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/agent/proctree"
)

func machine(cpus, gb float64, n int) Machine {
	m := Machine{CPUs: cpus, MemoryGB: gb}
	for i := range n {
		m.GPUs = append(m.GPUs, gpus.GPU{ID: fmt.Sprint("GPU-", i), Name: "H100", MemoryGB: 80})
	}
	return m
}

func mine(id string) Claim {
	return Claim{ID: id, Installation: "i", Cluster: "c", Hash: "h", User: "alice", Dir: "/nowhere/" + id, Config: "/nowhere/" + id + "/node.json", Mark: "h/" + id,
		Boot: BootID(), Holder: proctree.Self(), Since: time.Now()}
}

func TestFit(t *testing.T) {
	m := machine(8, 32, 2)
	held := []Claim{{ID: "x", Cluster: "train", User: "bob", CPUs: 6, MemoryGB: 8, GPUs: []string{"GPU-0"}}}
	tests := []struct {
		name string
		want Want
		gpus string
		full string
	}{
		{name: "a part", want: Want{CPUs: 2, MemoryGB: 24}},
		{name: "a device", want: Want{CPUs: 1, MemoryGB: 1, Accelerator: "h100", AcceleratorCount: 1}, gpus: "GPU-1"},
		{name: "a fraction takes a whole one", want: Want{CPUs: 1, MemoryGB: 1, Accelerator: "H100", AcceleratorCount: 0.3}, gpus: "GPU-1"},
		{name: "CPUs", want: Want{CPUs: 2.5, MemoryGB: 1}, full: "2 CPUs of 8 free, 2.5 asked for; held by train of bob"},
		{name: "memory", want: Want{CPUs: 1, MemoryGB: 24.5}, full: "24 GB of memory of 32 free, 24.5 asked for"},
		{name: "devices", want: Want{CPUs: 1, MemoryGB: 1, Accelerator: "H100", AcceleratorCount: 2}, full: "1 H100 of 2 free, 2 asked for"},
		{name: "another kind", want: Want{CPUs: 1, MemoryGB: 1, Accelerator: "A100", AcceleratorCount: 1}, full: "0 A100 of 0 free"},
	}
	for _, tt := range tests {
		got, err := Fit(m, held, tt.want)
		var full *Full
		switch {
		case tt.full == "" && (err != nil || strings.Join(got, " ") != tt.gpus):
			t.Errorf("%s: %v, %v", tt.name, got, err)
		case tt.full != "" && (!errors.As(err, &full) || !strings.Contains(full.Reason, tt.full)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.full)
		}
	}
}

// seen is what an observer shows.
type seen struct {
	bootID                    string
	lives, inits, some, known bool
	there, dirKnown, hasEnded bool
	age                       time.Duration
}

func (s seen) boot() string               { return s.bootID }
func (s seen) alive(proctree.Proc) bool   { return s.lives }
func (s seen) started(string) bool        { return s.inits }
func (s seen) marked(Claim) (bool, bool)  { return s.some, s.known }
func (s seen) folder(string) (bool, bool) { return s.there, s.dirKnown }
func (s seen) ended(string) bool          { return s.hasEnded }
func (s seen) now() time.Time             { return time.Unix(1000, 0).Add(s.age) }

func TestStale(t *testing.T) {
	c := Claim{Boot: "b", Since: time.Unix(1000, 0)}
	iso := c
	iso.Isolated = true
	old := time.Minute
	tests := []struct {
		name  string
		claim Claim
		see   seen
		stale bool
	}{
		{"it runs", c, seen{bootID: "b", lives: true, age: old}, false},
		{"the machine was restarted, the number is another process's", c, seen{bootID: "b2", lives: true, age: old}, true},
		{"its holder was killed, its init was started", c, seen{bootID: "b", inits: true, age: old}, false},
		{"it is young", c, seen{bootID: "b", dirKnown: true, known: true, age: time.Second}, false},
		{"the clock was set back", c, seen{bootID: "b", dirKnown: true, known: true, age: -time.Hour}, true},
		{"it ended itself", c, seen{bootID: "b", hasEnded: true, there: true, dirKnown: true, age: old}, true},
		{"its folder is gone", c, seen{bootID: "b", dirKnown: true, age: old}, true},
		{"its folder can't be seen, nor its processes", c, seen{bootID: "b", age: old}, false},
		{"isolated, init dead", iso, seen{bootID: "b", there: true, dirKnown: true, age: old}, true},
		{"plain, init dead, processes live on", c, seen{bootID: "b", there: true, dirKnown: true, some: true, known: true, age: old}, false},
		{"plain, everything dead", c, seen{bootID: "b", there: true, dirKnown: true, known: true, age: old}, true},
		{"plain, another user's, init dead", c, seen{bootID: "b", there: true, dirKnown: true, age: old}, false},
	}
	for _, tt := range tests {
		if got := stale(tt.claim, tt.see); (got != "") != tt.stale {
			t.Errorf("%s: stale because %q", tt.name, got)
		}
	}
}

func open(t testing.TB, dir string) *Ledger {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := Open(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLedger(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	m := machine(8, 32, 2)
	l := open(t, dir)
	a, err := l.Take(m, Want{CPUs: 2, MemoryGB: 2, Accelerator: "H100", AcceleratorCount: 1}, mine("a"))
	if err != nil || len(a.GPUs) != 1 {
		t.Fatal(a, err)
	}
	l.Close()
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o777 || st.Mode()&os.ModeSticky == 0 {
		t.Fatalf("the folder is %v, %v: other users can't claim", st, err)
	}
	l = open(t, dir)
	if _, err := l.Take(m, Want{CPUs: 2, MemoryGB: 2, Accelerator: "H100", AcceleratorCount: 2}, mine("b")); err == nil {
		t.Error("two devices of which one is held were given")
	}
	// A retry of the same node gets its share again, also a larger one.
	if a, err = l.Take(m, Want{CPUs: 8, MemoryGB: 2, Accelerator: "H100", AcceleratorCount: 2}, mine("a")); err != nil || len(a.GPUs) != 2 {
		t.Errorf("the same node again: %v, %v", a, err)
	}
	// The same id of another installation is another node.
	other := mine("a")
	other.Installation = "j"
	if _, err := l.Take(m, Want{CPUs: 1, MemoryGB: 1}, other); err == nil {
		t.Error("more CPUs than there are were given")
	}
	if err := l.Release(other); err != nil {
		t.Error(err)
	}
	if live, err := l.Live(); err != nil || len(live) != 1 {
		t.Errorf("live: %v, %v", live, err)
	}
	if err := l.Release(a); err != nil {
		t.Error(err)
	}
	l.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder outlives its last claim: %v", err)
	}
}

func TestDamagedClaimStopsGiving(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	l := open(t, dir)
	os.WriteFile(filepath.Join(dir, "x@i.json"), []byte("{"), 0o600)
	defer l.Close()
	if _, err := l.Take(machine(8, 8, 0), Want{CPUs: 1, MemoryGB: 1}, mine("a")); err == nil || !strings.Contains(err.Error(), "x@i.json") {
		t.Errorf("a claim that can't be read was passed over: %v", err)
	}
}

func TestStaleClaimIsTakenOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	l := open(t, dir)
	gone := mine("gone")
	gone.Boot, gone.GPUs, gone.CPUs = "an earlier run", []string{"GPU-0"}, 8
	if err := l.Put(gone); err != nil {
		t.Fatal(err)
	}
	c, err := l.Take(machine(8, 8, 1), Want{CPUs: 8, MemoryGB: 1, Accelerator: "H100", AcceleratorCount: 1}, mine("a"))
	if err != nil || len(c.GPUs) != 1 {
		t.Errorf("%v, %v", c, err)
	}
	l.Release(c)
	l.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("the stale claim is still there")
	}
}

// TestConcurrent has many claim and release at once, the folder coming and going with them.
func TestConcurrent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	m := machine(4, 100, 4)
	var mu sync.Mutex
	held := map[string]string{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 25 {
				id := fmt.Sprintf("n%d-%d", w, i)
				l := open(t, dir)
				c, err := l.Take(m, Want{CPUs: 1, MemoryGB: 1, Accelerator: "H100", AcceleratorCount: 1}, mine(id))
				l.Close()
				if err != nil {
					continue
				}
				mu.Lock()
				for _, g := range c.GPUs {
					if other := held[g]; other != "" {
						t.Errorf("%s was given to %s and %s", g, other, id)
					}
					held[g] = id
				}
				mu.Unlock()
				mu.Lock()
				for _, g := range c.GPUs {
					delete(held, g)
				}
				mu.Unlock()
				l = open(t, dir)
				if err := l.Release(c); err != nil {
					t.Error(err)
				}
				l.Close()
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}

// TestNeverTwice: whatever is taken and released in whatever order, the live claims fit the machine.
func TestNeverTwice(t *testing.T) {
	base := t.TempDir()
	run := 0
	rapid.Check(t, func(r *rapid.T) {
		run++
		dir := filepath.Join(base, fmt.Sprint(run))
		m := machine(float64(rapid.IntRange(1, 8).Draw(r, "cpus")), float64(rapid.IntRange(1, 8).Draw(r, "gb")), rapid.IntRange(0, 4).Draw(r, "gpus"))
		for range rapid.IntRange(1, 15).Draw(r, "steps") {
			l := open(t, dir)
			c := mine(fmt.Sprint("n", rapid.IntRange(0, 4).Draw(r, "node")))
			if rapid.Bool().Draw(r, "release") {
				if err := l.Release(c); err != nil {
					r.Fatal(err)
				}
			} else {
				w := Want{CPUs: float64(rapid.IntRange(1, 40).Draw(r, "want")) / 10, MemoryGB: float64(rapid.IntRange(1, 4).Draw(r, "wantGB")), Accelerator: "H100",
					AcceleratorCount: rapid.SampledFrom([]float64{0, 0.5, 1, 2}).Draw(r, "wantGPUs")}
				if got, err := l.Take(m, w, c); err == nil && len(got.GPUs) != Devices(w) {
					r.Fatalf("%v devices for %v", got.GPUs, w)
				}
			}
			live, err := l.Live()
			if err != nil {
				r.Fatal(err)
			}
			var cpus, gb float64
			seen := map[string]bool{}
			for _, c := range live {
				cpus, gb = cpus+c.CPUs, gb+c.MemoryGB
				for _, g := range c.GPUs {
					if seen[g] {
						r.Fatalf("%s is held twice", g)
					}
					seen[g] = true
				}
			}
			if cpus > m.CPUs+slack || gb > m.MemoryGB+slack || len(seen) > len(m.GPUs) {
				r.Fatalf("%v of %v CPUs, %v of %v GB, %d of %d devices are held", cpus, m.CPUs, gb, m.MemoryGB, len(seen), len(m.GPUs))
			}
			l.Close()
		}
		os.RemoveAll(dir)
	})
}
