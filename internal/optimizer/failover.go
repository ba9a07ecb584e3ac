package optimizer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/providers"
)

// Block rules out choices. A field that is empty (nil, 0) matches anything.
type Block struct {
	Cloud        string  `json:"cloud,omitempty"`
	Region       string  `json:"region,omitempty"`
	Zone         string  `json:"zone,omitempty"`
	InstanceType string  `json:"instance_type,omitempty"`
	Accelerator  string  `json:"accelerator,omitempty"` // NAME for any count, or NAME:COUNT
	Spot         *bool   `json:"spot,omitempty"`
	CPUs         float64 `json:"cpus,omitempty"` // only where there are no instance types
	MemoryGB     float64 `json:"memory_gb,omitempty"`
}

// Matches tells whether every field that is set equals the choice's. Names compare without case.
func (b Block) Matches(c Choice) bool {
	same := func(want, have string) bool { return want == "" || strings.EqualFold(want, have) }
	if !same(b.Cloud, c.Provider) || !same(b.Region, c.Spec.Region) || !same(b.Zone, c.Spec.Zone) || !same(b.InstanceType, c.Spec.InstanceType) {
		return false
	}
	if b.Spot != nil && *b.Spot != c.Spec.Spot || b.CPUs != 0 && b.CPUs != c.Spec.CPUs || b.MemoryGB != 0 && b.MemoryGB != c.Spec.MemoryGB {
		return false
	}
	if b.Accelerator == "" {
		return true
	}
	name, count, counted := strings.Cut(b.Accelerator, ":")
	return c.Spec.Accelerator != "" && catalog.Same(name, c.Spec.Accelerator) && (!counted || count == num(c.Spec.AcceleratorCount))
}

func blockedBy(blocks []Block, c Choice) bool {
	for _, b := range blocks {
		if b.Matches(c) {
			return true
		}
	}
	return false
}

// Unblocked returns the choices that no block matches, in the same order.
func Unblocked(choices []Choice, blocks []Block) []Choice {
	var out []Choice
	for _, c := range choices {
		if !blockedBy(blocks, c) {
			out = append(out, c)
		}
	}
	return out
}

// Move is what to do after a choice failed.
type Move string

// Moves.
const (
	MoveRetry   Move = "retry"   // the same again, after the time the error names
	MoveResolve Move = "resolve" // find out by tag and token what became of it; adopt or delete; then the same again
	MoveZone    Move = "zone"    // go on in the next zone
	MoveRegion  Move = "region"  // go on in the next region
	MoveCloud   Move = "cloud"   // go on with another infra, or with other machines of this one
)

// Decision is what a failure means for the search.
type Decision struct {
	Move   Move    `json:"move"`
	Blocks []Block `json:"blocks,omitempty"` // none unless the search goes on elsewhere
}

// Decide says what to do after a choice failed with an error of that kind and scope. An empty scope means what the kind
// usually means. Blocks of a decision to go on always match the failed choice itself.
//
// How far an error reaches:
//   - no capacity, not found and faults: this machine in the zone, region or infra of the scope (default: the zone, or the region
//     where the choice has no zone);
//   - quota: this machine in the region (also for a zone), or everywhere on the infra;
//   - invalid and unsupported: the scope for this machine; with scope cloud (the default) the whole infra;
//   - refused credentials, a taken name: the whole infra.
func Decide(c Choice, kind providers.Kind, scope providers.Scope) Decision {
	switch kind {
	case providers.RateLimited:
		return Decision{Move: MoveRetry}
	case providers.UnknownOutcome:
		return Decision{Move: MoveResolve}
	case providers.AuthFailed, providers.Conflict:
		return wholeCloud(c)
	case providers.Invalid, providers.Unsupported:
		if scope != providers.ScopeZone && scope != providers.ScopeRegion {
			return wholeCloud(c)
		}
	case providers.QuotaExceeded:
		if scope != providers.ScopeCloud {
			scope = providers.ScopeRegion
		}
	}
	return machine(c, scope)
}

// Blocks is what a failure rules out; see Decide.
func Blocks(c Choice, kind providers.Kind, scope providers.Scope) []Block {
	return Decide(c, kind, scope).Blocks
}

// GiveUp rules out a choice whose retries are used up: the machine in its zone, or in its region where it has no zone.
func GiveUp(c Choice) []Block { return machine(c, providers.ScopeZone).Blocks }

func wholeCloud(c Choice) Decision {
	return Decision{Move: MoveCloud, Blocks: []Block{{Cloud: c.Provider}}}
}

// machine rules out the kind of node in the zone, the region or everywhere on its infra. A scope that the choice does not
// name falls to the next wider one.
func machine(c Choice, scope providers.Scope) Decision {
	spot := c.Spec.Spot
	b := Block{Cloud: c.Provider, InstanceType: c.Spec.InstanceType, Accelerator: c.Accelerators(), Spot: &spot}
	if b.InstanceType == "" {
		b.CPUs, b.MemoryGB = c.Spec.CPUs, c.Spec.MemoryGB
	}
	move := MoveCloud
	switch {
	case scope != providers.ScopeCloud && scope != providers.ScopeRegion && c.Spec.Zone != "":
		b.Zone, b.Region, move = c.Spec.Zone, c.Spec.Region, MoveZone
	case scope != providers.ScopeCloud && c.Spec.Region != "":
		b.Region, move = c.Spec.Region, MoveRegion
	}
	return Decision{Move: move, Blocks: []Block{b}}
}

// Failure is what became of one choice.
type Failure struct {
	Choice  Choice          `json:"choice"`
	Kind    providers.Kind  `json:"kind"`
	Scope   providers.Scope `json:"scope,omitempty"`
	Message string          `json:"message"`
	Hint    string          `json:"hint,omitempty"`
	// Midway says that there was room, and that nodes which had been accepted went away before they were ready.
	Midway bool `json:"midway,omitempty"`
}

// FailureOf records an error of a provider.
func FailureOf(c Choice, err error) Failure {
	f := Failure{Choice: c, Kind: providers.KindOf(err), Message: err.Error()}
	var e *providers.Error
	if errors.As(err, &e) {
		f.Scope, f.Hint = e.Scope, e.Hint
	}
	return f
}

// kindWords name the kinds of errors for people.
var kindWords = map[providers.Kind]string{
	providers.NoCapacity: "no capacity", providers.QuotaExceeded: "quota exceeded", providers.AuthFailed: "credentials refused",
	providers.RateLimited: "rate limited", providers.NotFound: "not found", providers.Conflict: "name taken",
	providers.UnknownOutcome: "unknown outcome", providers.Invalid: "invalid", providers.Unsupported: "not supported",
	providers.Internal: "internal fault",
}

// String is one line of an explanation.
func (f Failure) String() string {
	word := kindWords[f.Kind]
	if word == "" {
		word = string(f.Kind)
	}
	if f.Message == "" || strings.EqualFold(f.Message, word) || f.Message == string(f.Kind) {
		return f.Choice.String() + ": " + word
	}
	return f.Choice.String() + ": " + word + ": " + f.Message
}

// needsAction tells whether only a change by a person can help.
func (f Failure) needsAction() bool {
	switch f.Kind {
	case providers.AuthFailed, providers.Invalid, providers.Unsupported, providers.Conflict:
		return true
	}
	return false
}

// WorthRetrying tells whether a later round may succeed without anybody changing anything.
func WorthRetrying(failures []Failure) bool {
	for _, f := range failures {
		if !f.needsAction() {
			return true
		}
	}
	return len(failures) == 0
}

// AwaitsCredentials tells whether a later round may succeed once somebody has renewed credentials that were refused.
func AwaitsCredentials(failures []Failure) bool {
	return slices.ContainsFunc(failures, func(f Failure) bool { return f.Kind == providers.AuthFailed })
}

// Explain is the error of a launch for which everything was tried: one line per choice that failed, then the infra that
// could not even be tried. Its kind is ProvisionPrechecks if no failure will go away by itself, else ResourcesUnavailable.
func Explain(failures []Failure, notTried []Reason) *api.Error {
	e := &api.Error{Kind: api.ErrResourcesUnavailable}
	infra := map[string]bool{}
	var hints []string
	for _, f := range failures {
		infra[f.Choice.Provider] = true
		if line := f.String(); !in(line, e.Details...) {
			e.Details = append(e.Details, line)
		}
		if f.Hint != "" && !in(f.Hint, hints...) {
			hints = append(hints, f.Hint)
		}
	}
	switch tried := len(e.Details); {
	case tried == 1:
		e.Message = "the nodes could not be brought up in the only place that fits"
	default:
		e.Message = fmt.Sprintf("the nodes could not be brought up: all %d places that fit failed, on %d infra", tried, len(infra))
	}
	if len(failures) == 0 {
		e.Message = "there is no place to bring the nodes up"
	}
	if n := len(e.Details); n > maxDetails {
		// The last failures tell most: the ones before are of the same kind.
		e.Details = append([]string{fmt.Sprintf("%d earlier failures are left out", n-maxDetails)}, e.Details[n-maxDetails:]...)
	}
	for _, why := range notTried {
		line := "not tried: " + why.String()
		if !in(line, e.Details...) && len(e.Details) < 2*maxDetails {
			e.Details = append(e.Details, line)
		}
	}
	if !WorthRetrying(failures) {
		e.Kind = api.ErrPrechecks
	} else {
		hints = append(hints, "to go on trying until nodes are free: `sky launch --retry-until-up`; or allow more infra, regions or accelerators (any_of)")
	}
	e.Hint = strings.Join(hints[:min(len(hints), 5)], "\n")
	return e
}
