package providers

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Registry is the set of providers a server works with.
type Registry struct {
	byName map[string]Provider
	names  []string
}

// NewRegistry makes a registry of the given providers.
func NewRegistry(ps ...Provider) *Registry {
	r := &Registry{byName: map[string]Provider{}}
	for _, p := range ps {
		r.byName[p.Name()] = p
		r.names = append(r.names, p.Name())
	}
	sort.Strings(r.names)
	return r
}

// Names lists the providers in alphabetical order.
func (r *Registry) Names() []string { return append([]string(nil), r.names...) }

// Get finds a provider by name, any case.
func (r *Registry) Get(name string) (Provider, error) {
	if p, ok := r.byName[strings.ToLower(name)]; ok {
		return p, nil
	}
	if Planned(name) {
		return nil, &Error{Kind: Invalid, Scope: ScopeCloud, Msg: fmt.Sprintf("infra %s comes with a later release", strings.ToLower(name)),
			Hint: "this one has: " + strings.Join(r.names, ", ")}
	}
	return nil, &Error{Kind: Invalid, Scope: ScopeCloud, Msg: fmt.Sprintf("unknown infra %q", name),
		Hint: "this server knows: " + strings.Join(r.names, ", ")}
}

// planned are the infra that task files of today name and that later releases bring.
var planned = []string{"aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "k8s", "kubernetes", "lambda", "nebius", "oci", "paperspace", "primeintellect",
	"runpod", "scp", "seeweb", "shadeform", "slurm", "vast", "vsphere"}

// Planned tells whether an infra, in any case, is one that a later release brings. It says nothing of a registry: one
// that has it already is asked first.
func Planned(name string) bool { return slices.Contains(planned, strings.ToLower(name)) }
