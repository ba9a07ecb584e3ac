package providertest

import (
	"context"
	"errors"
	"sync"

	"github.com/skyloom/skyloom/providers"
)

func testCheck(e *env) {
	r, err := e.Provider.Check(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	if len(r.Capabilities) == 0 {
		e.Error("no capabilities reported")
	}
	for _, c := range r.Capabilities {
		if c != "compute" && c != "storage" {
			e.Errorf("unknown capability %q", c)
		}
	}
	if n := e.Provider.Name(); n == "" {
		e.Error("no name")
	}
}

func testOffers(e *env) {
	all, err := e.Provider.Offers(e.ctx, providers.OfferFilter{})
	if err != nil || len(all) == 0 {
		e.Fatalf("%d offers, %v", len(all), err)
	}
	type key struct {
		typ, region, zone, acc string
		spot                   bool
	}
	seen := map[key]bool{}
	spot := 0
	for _, o := range all {
		k := key{o.InstanceType, o.Region, o.Zone, o.Accelerator, o.Spot}
		if seen[k] {
			e.Errorf("offered twice: %+v", k)
		}
		seen[k] = true
		if o.Provider != e.Provider.Name() || o.CPUs <= 0 || o.MemoryGB <= 0 || o.PricePerHour < 0 {
			e.Errorf("not well-formed: %+v", o)
		}
		if (o.Accelerator == "") != (o.AcceleratorCount == 0) {
			e.Errorf("accelerator %q with count %v", o.Accelerator, o.AcceleratorCount)
		}
		if o.Spot {
			spot++
		}
	}
	if (spot > 0) != e.features.Spot {
		e.Errorf("%d spot offers, but the spot feature is %v", spot, e.features.Spot)
	}
	first := all[0]
	for name, f := range map[string]providers.OfferFilter{
		"region": {Region: first.Region}, "zone": {Zone: first.Zone}, "type": {InstanceType: first.InstanceType},
		"accelerator": {Accelerator: first.Accelerator}, "spot": {Spot: &first.Spot},
	} {
		some, err := e.Provider.Offers(e.ctx, f)
		if err != nil || len(some) == 0 {
			e.Errorf("filter by %s: %d offers, %v", name, len(some), err)
		}
		for _, o := range some {
			if f.Region != "" && o.Region != f.Region || f.Zone != "" && o.Zone != f.Zone || f.InstanceType != "" && o.InstanceType != f.InstanceType ||
				f.Accelerator != "" && o.Accelerator != f.Accelerator || f.Spot != nil && o.Spot != *f.Spot {
				e.Errorf("filter by %s let through %+v", name, o)
			}
		}
	}
	if none, err := e.Provider.Offers(e.ctx, providers.OfferFilter{Region: "no-such-region"}); err != nil || len(none) > 0 {
		e.Errorf("offers in a region that is not there: %d, %v", len(none), err)
	}
}

func testCreateListDelete(e *env) {
	ref := e.cluster("suite-cld")
	made := e.create(ref, 2, e.spec())
	got := e.running(ref, 2)
	if !same(made, got) {
		e.Errorf("created %v, listed %v", ids(made), ids(got))
	}
	e.wellFormed(ref, got, 2)
	ips := map[string]bool{}
	for _, n := range got {
		if n.InternalIP == "" {
			e.Errorf("running node %s has no address", n.ID)
		}
		ips[n.InternalIP] = true
		if n.Resources.CPUs <= 0 || n.Resources.MemoryGB <= 0 {
			e.Errorf("node %s offers jobs %+v", n.ID, n.Resources)
		}
	}
	e.destroy(ref)
	e.until("nothing is listed", func() bool { return len(e.list(ref)) == 0 })
}

func testCreateIdempotent(e *env) {
	ref := e.cluster("suite-idem")
	first := e.create(ref, 2, e.spec())
	for range 2 {
		if again := e.create(ref, 2, e.spec()); !same(first, again) {
			e.Fatalf("the same token gave %v, then %v", ids(first), ids(again))
		}
	}
	if got := e.running(ref, 2); !same(first, got) {
		e.Errorf("listed %v, want %v", ids(got), ids(first))
	}
}

func testCreateConcurrent(e *env) {
	ref := e.cluster("suite-race")
	s := e.spec()
	const n = 4
	var sets [n][]providers.Node
	var errs [n]error
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { sets[i], errs[i] = e.Provider.Create(e.ctx, e.request(ref, 2, s)) })
	}
	wg.Wait()
	for i := range n {
		if errs[i] != nil {
			e.Fatalf("create %d: %v", i, errs[i])
		}
		if !same(sets[0], sets[i]) {
			e.Errorf("one token gave %v and %v", ids(sets[0]), ids(sets[i]))
		}
	}
	if got := e.running(ref, 2); !same(sets[0], got) {
		e.Errorf("listed %v", ids(got))
	}
}

func testCreateConflict(e *env) {
	ref := e.cluster("suite-conflict")
	made := e.up(ref, 1, e.spec())
	other := e.request(ref, 2, e.spec())
	_, err := e.Provider.Create(e.ctx, other)
	e.wantKind("the same token for another number of nodes", err, providers.Conflict)
	other = e.request(ref, 1, e.spec())
	other.Token = "another"
	_, err = e.Provider.Create(e.ctx, other)
	e.wantKind("another token beside living nodes", err, providers.Conflict)
	if got := e.list(ref); !same(got, made) {
		e.Errorf("listed %v, want %v", ids(got), ids(made))
	}
	// Once they are deleted the cluster can be made anew, as failover does.
	e.destroy(ref)
	again, err := e.Provider.Create(e.ctx, other)
	if err != nil || len(again) != 1 || again[0].Token != "another" {
		e.Errorf("create after delete: %v, %v", again, err)
	}
}

func testCreateInvalid(e *env) {
	ref := e.cluster("suite-invalid")
	s := e.spec()
	cases := map[string]func(*providers.CreateRequest){
		"no token":              func(r *providers.CreateRequest) { r.Token = "" },
		"no nodes":              func(r *providers.CreateRequest) { r.NumNodes = 0 },
		"no hash":               func(r *providers.CreateRequest) { r.Cluster.Hash = "" },
		"unknown instance type": func(r *providers.CreateRequest) { r.Spec.InstanceType = "no-such-type" },
		"unknown region":        func(r *providers.CreateRequest) { r.Spec.Region, r.Spec.Zone = "no-such-region", "" },
	}
	for name, change := range cases {
		r := e.request(ref, 1, s)
		change(&r)
		_, err := e.Provider.Create(e.ctx, r)
		e.wantKind(name, err, providers.Invalid)
	}
	if ns := e.list(ref); len(ns) > 0 {
		e.Errorf("left behind: %v", ids(ns))
	}
}

func testCreateUnknownOutcome(e *env) {
	e.need("FailCreate", e.FailCreate != nil)
	ref := e.cluster("suite-unknown")
	e.FailCreate(e.T, providers.UnknownOutcome, true)
	_, err := e.Provider.Create(e.ctx, e.request(ref, 2, e.spec()))
	e.wantKind("create", err, providers.UnknownOutcome)
	found := e.running(ref, 2)
	if adopted := e.create(ref, 2, e.spec()); !same(adopted, found) {
		e.Errorf("found %v by tag, the retry gave %v", ids(found), ids(adopted))
	}
}

func testErrorKinds(e *env) {
	e.need("FailCreate", e.FailCreate != nil)
	ref := e.cluster("suite-kinds")
	for _, k := range []providers.Kind{providers.NoCapacity, providers.QuotaExceeded, providers.AuthFailed, providers.RateLimited, providers.Internal} {
		e.FailCreate(e.T, k, false)
		_, err := e.Provider.Create(e.ctx, e.request(ref, 2, e.spec()))
		e.wantKind(string(k), err, k)
		var pe *providers.Error
		if errors.As(err, &pe) && pe.Scope == "" && (k == providers.NoCapacity || k == providers.QuotaExceeded) {
			e.Errorf("%s has no scope", k)
		}
		if ns := e.list(ref); len(ns) > 0 {
			e.Errorf("%s left %v behind", k, ids(ns))
		}
	}
}

func testCancelled(e *env) {
	ref := e.cluster("suite-cancelled")
	s := e.spec()
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	// Either it was too late and the nodes are there, or nothing was made.
	ns, err := e.Provider.Create(ctx, e.request(ref, 1, s))
	if err == nil && len(ns) != 1 {
		e.Errorf("create with a cancelled context gave %d nodes and no error", len(ns))
	}
	e.destroy(ref)
	e.until("nothing is listed", func() bool { return len(e.list(ref)) == 0 })
}
