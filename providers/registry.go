package providers

import (
	"fmt"
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
	return nil, &Error{Kind: Invalid, Scope: ScopeCloud, Msg: fmt.Sprintf("unknown infra %q", name),
		Hint: "this server knows: " + strings.Join(r.names, ", ")}
}
