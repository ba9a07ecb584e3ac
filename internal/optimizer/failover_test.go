package optimizer

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

func TestDecide(t *testing.T) {
	no, yes := false, true
	zoned := Choice{Provider: "aws", Spec: providers.NodeSpec{InstanceType: "p4", Region: "r", Zone: "z", Accelerator: "A100", AcceleratorCount: 8, Spot: true}}
	regional := Choice{Provider: "aws", Spec: providers.NodeSpec{InstanceType: "m6", Region: "r"}}
	local := Choice{Provider: "local", Spec: providers.NodeSpec{CPUs: 4, MemoryGB: 16}}
	inZone := Block{Cloud: "aws", Region: "r", Zone: "z", InstanceType: "p4", Accelerator: "A100:8", Spot: &yes}
	inRegion := Block{Cloud: "aws", Region: "r", InstanceType: "p4", Accelerator: "A100:8", Spot: &yes}
	anywhere := Block{Cloud: "aws", InstanceType: "p4", Accelerator: "A100:8", Spot: &yes}
	whole := Block{Cloud: "aws"}
	for _, c := range []struct {
		choice Choice
		kind   providers.Kind
		scope  providers.Scope
		move   Move
		blocks []Block
	}{
		{zoned, providers.NoCapacity, "", MoveZone, []Block{inZone}},
		{zoned, providers.NoCapacity, providers.ScopeZone, MoveZone, []Block{inZone}},
		{zoned, providers.NoCapacity, providers.ScopeRegion, MoveRegion, []Block{inRegion}},
		{zoned, providers.NoCapacity, providers.ScopeCloud, MoveCloud, []Block{anywhere}},
		{zoned, providers.QuotaExceeded, "", MoveRegion, []Block{inRegion}},
		{zoned, providers.QuotaExceeded, providers.ScopeZone, MoveRegion, []Block{inRegion}},
		{zoned, providers.QuotaExceeded, providers.ScopeCloud, MoveCloud, []Block{anywhere}},
		{zoned, providers.AuthFailed, providers.ScopeZone, MoveCloud, []Block{whole}},
		{zoned, providers.Conflict, "", MoveCloud, []Block{whole}},
		{zoned, providers.Invalid, "", MoveCloud, []Block{whole}},
		{zoned, providers.Invalid, providers.ScopeCloud, MoveCloud, []Block{whole}},
		{zoned, providers.Invalid, providers.ScopeRegion, MoveRegion, []Block{inRegion}},
		{zoned, providers.Unsupported, providers.ScopeZone, MoveZone, []Block{inZone}},
		{zoned, providers.NotFound, "", MoveZone, []Block{inZone}},
		{zoned, providers.Internal, "", MoveZone, []Block{inZone}},
		{zoned, providers.RateLimited, "", MoveRetry, nil},
		{zoned, providers.UnknownOutcome, "", MoveResolve, nil},
		{regional, providers.NoCapacity, providers.ScopeZone, MoveRegion, []Block{{Cloud: "aws", Region: "r", InstanceType: "m6", Spot: &no}}},
		{local, providers.NoCapacity, providers.ScopeZone, MoveCloud, []Block{{Cloud: "local", Spot: &no, CPUs: 4, MemoryGB: 16}}},
	} {
		d := Decide(c.choice, c.kind, c.scope)
		if d.Move != c.move || !reflect.DeepEqual(d.Blocks, c.blocks) {
			t.Errorf("%s, scope %q in %s: %s %+v", c.kind, c.scope, c.choice, d.Move, d.Blocks)
		}
		for _, b := range d.Blocks {
			if !b.Matches(c.choice) {
				t.Errorf("%s: %+v does not match the failed choice", c.kind, b)
			}
		}
	}
	if !reflect.DeepEqual(GiveUp(zoned), []Block{inZone}) {
		t.Errorf("give up: %+v", GiveUp(zoned))
	}
}

func TestBlockMatches(t *testing.T) {
	yes := true
	c := Choice{Provider: "aws", Spec: providers.NodeSpec{InstanceType: "p4", Region: "r", Zone: "z", Accelerator: "A100", AcceleratorCount: 8, CPUs: 96, MemoryGB: 1000}}
	for b, want := range map[*Block]bool{
		{}: true, {Cloud: "AWS"}: true, {Cloud: "gcp"}: false, {Region: "r"}: true, {Region: "q"}: false, {Zone: "z"}: true, {Zone: "y"}: false,
		{InstanceType: "p4"}: true, {InstanceType: "p5"}: false, {Accelerator: "a100"}: true, {Accelerator: "A100:8"}: true, {Accelerator: "A100:1"}: false,
		{Accelerator: "H100"}: false, {Spot: &yes}: false, {CPUs: 96}: true, {CPUs: 4}: false, {MemoryGB: 4}: false, {Cloud: "aws", Zone: "y"}: false,
	} {
		if b.Matches(c) != want {
			t.Errorf("%+v: %v", *b, !want)
		}
	}
	if (Block{Accelerator: "A100"}).Matches(Choice{Provider: "aws"}) {
		t.Error("a block of an accelerator matches a CPU node")
	}
}

// TestFailover walks through a search in which every place is out of capacity.
func TestFailover(t *testing.T) {
	in := input(task.Request{Accelerator: acc(t, "L4")})
	res, err := Rank(in)
	if err != nil {
		t.Fatal(err)
	}
	fail := func(c Choice) *providers.Error {
		switch c.Spec.Zone {
		case "aws-east-a":
			return &providers.Error{Kind: providers.QuotaExceeded, Scope: providers.ScopeRegion, Msg: "0 of 1 vCPUs left", Hint: "ask for a higher quota"}
		case "gcp-east-b":
			return providers.Errorf(providers.AuthFailed, providers.ScopeCloud, "the key has expired")
		}
		return providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity")
	}
	var tried []string
	var failures []Failure
	var blocks []Block
	for left := res.Choices; len(left) > 0; left = Unblocked(left, blocks) {
		c := left[0]
		tried = append(tried, c.Spec.Zone)
		f := FailureOf(c, fmt.Errorf("creating nodes: %w", fail(c)))
		failures = append(failures, f)
		blocks = append(blocks, Blocks(c, f.Kind, f.Scope)...)
	}
	if want := []string{"aws-east-a", "gcp-east-a", "gcp-east-b", "aws-west-a", "aws-west-b"}; !reflect.DeepEqual(tried, want) {
		t.Errorf("tried %v, want %v", tried, want)
	}
	in.Blocked = blocks
	if _, err := Rank(in); err == nil || !strings.Contains(err.Error(), "has been tried") {
		t.Errorf("ranking again: %v", err)
	}
	e := Explain(failures, []Reason{{Infra: "ssh", Text: "has no L4"}})
	if e.Kind != api.ErrResourcesUnavailable || len(e.Details) != 6 || !WorthRetrying(failures) {
		t.Errorf("%+v", e)
	}
	if taken := (Failure{Kind: providers.Conflict}); !AwaitsCredentials(failures) || AwaitsCredentials([]Failure{taken}) {
		t.Error("refused credentials can be renewed, a taken name can't")
	}
	for _, s := range []string{"all 5 places", "aws (aws-east-a) aws.l4, L4:1: quota exceeded: creating nodes: 0 of 1 vCPUs left", "ask for a higher quota",
		"credentials refused", "not tried: ssh: has no L4", "--retry-until-up"} {
		if !strings.Contains(e.Error(), s) {
			t.Errorf("missing %q in\n%s", s, e)
		}
	}
}

func TestExplain(t *testing.T) {
	c := Choice{Provider: "aws", Spec: providers.NodeSpec{InstanceType: "m6", Zone: "z"}}
	auth := FailureOf(c, &providers.Error{Kind: providers.AuthFailed, Msg: "expired", Hint: "log in again"})
	e := Explain([]Failure{auth}, nil)
	if e.Kind != api.ErrPrechecks || strings.Contains(e.Hint, "retry-until-up") || !strings.Contains(e.Hint, "log in again") || !strings.Contains(e.Message, "only place") {
		t.Errorf("%+v", e)
	}
	e = Explain([]Failure{auth, FailureOf(c, errors.New("boom"))}, nil)
	if e.Kind != api.ErrResourcesUnavailable || !strings.Contains(e.Error(), "internal fault: boom") {
		t.Errorf("%+v", e)
	}
	bare := FailureOf(c, &providers.Error{Kind: providers.NoCapacity, After: time.Second})
	if bare.String() != "aws (z) m6: no capacity" {
		t.Errorf("%q", bare)
	}
	var many []Failure
	for i := range 50 {
		c.Spec.Zone = fmt.Sprint("z", i)
		many = append(many, FailureOf(c, providers.Errorf(providers.NoCapacity, "", "")))
	}
	e = Explain(many, nil)
	if len(e.Details) != maxDetails+1 || e.Details[0] != "30 earlier failures are left out" || !strings.Contains(e.Message, "all 50 places") {
		t.Errorf("%+v", e)
	}
	if e = Explain(nil, nil); e.Message == "" {
		t.Error("no message")
	}
}
