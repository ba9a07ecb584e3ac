package memory

import (
	"fmt"
	"hash/fnv"
	"math"
	"time"

	"github.com/skyloom/skyloom/providers"
)

// Fault is one scripted fault: the next matching call meets it. Faults are used up in the order they were given.
type Fault struct {
	// Call is check, offers, create, list, delete, stop, start, preempt, quota, transport or dial; empty matches any.
	Call string
	// Region, Zone, Cluster (name or hash) and NodeID narrow the match; empty matches any.
	Region, Zone, Cluster, NodeID string
	// Err is what the call answers; nil with Leave or Lost answers as if all were well.
	Err error
	// AfterEffect makes the call take effect before it answers with Err: a time-out that succeeded.
	AfterEffect bool
	// Leave, with create, makes that many of the nodes before the call fails.
	Leave int
	// Lost, with delete, stop or start, answers OK and does nothing.
	Lost bool
	// Skip lets that many matching calls pass first; Times repeats the fault (0 means once, negative for ever).
	Skip, Times int
}

func (f Fault) matches(at call) bool {
	return (f.Call == "" || f.Call == at.name) && (f.Region == "" || f.Region == at.region) && (f.Zone == "" || f.Zone == at.zone) &&
		(f.Cluster == "" || f.Cluster == at.ref.Name || f.Cluster == at.ref.Hash) && (f.NodeID == "" || f.NodeID == at.node)
}

// Rates are probabilities between 0 and 1 of random faults, per call.
type Rates struct {
	// Create fails before, CreateAfter after it took effect, CreatePartial leaves a part of the nodes.
	Create        float64 `json:"create,omitempty" yaml:"create"`
	CreateAfter   float64 `json:"create_after,omitempty" yaml:"create_after"`
	CreatePartial float64 `json:"create_partial,omitempty" yaml:"create_partial"`
	List          float64 `json:"list,omitempty" yaml:"list"`
	// Delete fails before, DeleteAfter after it took effect, DeleteLost answers OK and does nothing.
	Delete      float64 `json:"delete,omitempty" yaml:"delete"`
	DeleteAfter float64 `json:"delete_after,omitempty" yaml:"delete_after"`
	DeleteLost  float64 `json:"delete_lost,omitempty" yaml:"delete_lost"`
	Stop        float64 `json:"stop,omitempty" yaml:"stop"`
	Start       float64 `json:"start,omitempty" yaml:"start"`
	Dial        float64 `json:"dial,omitempty" yaml:"dial"`
	// Preempt is the chance that a spot node is taken away, Death that any node dies, within Lifetime after its creation.
	Preempt  float64  `json:"preempt,omitempty" yaml:"preempt"`
	Death    float64  `json:"death,omitempty" yaml:"death"`
	Lifetime Duration `json:"lifetime,omitempty" yaml:"lifetime"` // default one hour
	// MaxPerKey ends the random faults of one kind of call on one cluster after so many, so that all converges; 0: no end.
	MaxPerKey int `json:"max_per_key,omitempty" yaml:"max_per_key"`
}

func (r Rates) all() map[string]float64 {
	return map[string]float64{"create": r.Create, "create_after": r.CreateAfter, "create_partial": r.CreatePartial, "list": r.List,
		"delete": r.Delete, "delete_after": r.DeleteAfter, "delete_lost": r.DeleteLost, "stop": r.Stop, "start": r.Start,
		"dial": r.Dial, "preempt": r.Preempt, "death": r.Death}
}

// call is one call as faults see it.
type call struct {
	name, region, zone, node string
	ref                      providers.ClusterRef
	nodes                    int
}

// script is the state of faults; the cloud's lock guards it.
type script struct {
	seed   int64
	rates  Rates
	off    bool
	queue  []*Fault
	counts map[string]int // calls by kind and cluster
	hits   map[string]int // random faults by kind and cluster
}

// Script queues faults for the calls to come.
func (c *Cloud) Script(faults ...Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range faults {
		c.script.queue = append(c.script.queue, &f)
	}
}

// StopFaults ends scripted and random faults, deaths that are already due excepted.
func (c *Cloud) StopFaults() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script.off, c.script.queue = true, nil
}

// SetRates replaces the random faults' rates from now on.
func (c *Cloud) SetRates(r Rates) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script.rates, c.script.off = r, false
}

// next gives the fault that the call meets, or nil.
func (s *script) next(at call) *Fault {
	if s.off {
		return nil
	}
	for i, f := range s.queue {
		if !f.matches(at) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		hit := *f
		if f.Times <= 1 && f.Times >= 0 {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
		} else if f.Times > 1 {
			f.Times--
		}
		return &hit
	}
	return s.random(at)
}

// random draws a fault from the seed, the kind of call, the cluster's name and how many such calls there were: so it
// does not depend on how the calls of different clusters interleave.
func (s *script) random(at call) *Fault {
	key := at.name + "/" + at.ref.Name
	n := s.counts[key]
	s.counts[key] = n + 1
	if s.rates.MaxPerKey > 0 && s.hits[key] >= s.rates.MaxPerKey {
		return nil
	}
	roll := func(what string) float64 { return draw(s.seed, key, n, what) }
	var f *Fault
	switch r := s.rates; at.name {
	case "create":
		switch {
		case roll("before") < r.Create:
			f = &Fault{Err: createErrors(roll("kind"), at)}
		case roll("after") < r.CreateAfter:
			f = &Fault{Err: unknownOutcome("create"), AfterEffect: true}
		case roll("partial") < r.CreatePartial:
			f = &Fault{Err: providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity in %s for all %d nodes", at.zone, at.nodes),
				Leave: int(roll("left") * float64(at.nodes))}
		}
	case "delete":
		switch {
		case roll("before") < r.Delete:
			f = &Fault{Err: plainErrors(roll("kind"), at)}
		case roll("after") < r.DeleteAfter:
			f = &Fault{Err: unknownOutcome("delete"), AfterEffect: true}
		case roll("lost") < r.DeleteLost:
			f = &Fault{Lost: true}
		}
	case "list", "stop", "start", "dial":
		rate := map[string]float64{"list": r.List, "stop": r.Stop, "start": r.Start, "dial": r.Dial}[at.name]
		if roll("before") < rate {
			f = &Fault{Err: plainErrors(roll("kind"), at), AfterEffect: at.name != "list" && at.name != "dial" && roll("after") < 0.5}
		}
	}
	if f != nil {
		s.hits[key]++
	}
	return f
}

// doom draws when a new machine dies by itself, if it does.
func (s *script) doom(m *machine) (after time.Duration, reason string) {
	if s.off {
		return 0, ""
	}
	life := time.Duration(s.rates.Lifetime)
	if life == 0 {
		life = time.Hour
	}
	key := fmt.Sprintf("doom/%s/%d", m.Cluster.Name, m.Rank)
	n := s.counts[key]
	s.counts[key] = n + 1
	if s.rates.MaxPerKey > 0 && s.hits[key] >= s.rates.MaxPerKey {
		return 0, ""
	}
	at := time.Duration(draw(s.seed, key, n, "when") * float64(life))
	switch {
	case m.Spec.Spot && draw(s.seed, key, n, "preempt") < s.rates.Preempt:
		reason = ReasonPreempted
	case draw(s.seed, key, n, "death") < s.rates.Death:
		reason = ReasonKilled
	default:
		return 0, ""
	}
	s.hits[key]++
	return at, reason
}

// draw is a number in [0,1) that depends on its arguments only.
func draw(seed int64, key string, n int, what string) float64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d|%s|%d|%s", seed, key, n, what)
	x := h.Sum64() // FNV mixes its last bytes badly: finish as splitmix64 does
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / math.Exp2(53)
}

func unknownOutcome(what string) error {
	return providers.Errorf(providers.UnknownOutcome, providers.ScopeZone, "%s: the request timed out; it may have taken effect", what)
}

func createErrors(roll float64, at call) error {
	switch int(roll * 6) {
	case 0, 1:
		return providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity in zone %s", at.zone)
	case 2:
		return providers.Errorf(providers.NoCapacity, providers.ScopeRegion, "no capacity in region %s", at.region)
	case 3:
		return providers.Errorf(providers.QuotaExceeded, providers.ScopeRegion, "quota exceeded in region %s", at.region)
	case 4:
		return unknownOutcome("create") // and it had no effect
	}
	return plainErrors(roll*6-5, at)
}

func plainErrors(roll float64, at call) error {
	if roll < 0.5 {
		e := providers.Errorf(providers.RateLimited, providers.ScopeCloud, "%s: too many requests", at.name)
		e.After = 2 * time.Second
		return e
	}
	return providers.Errorf(providers.Internal, providers.ScopeCloud, "%s: internal error of the cloud, try again", at.name)
}
