// Package providers is the contract between the core and the infra that machines come from.
//
// A provider is one folder below this one and one line to register. It sits below the activities: it owns no workflow,
// keeps no state that it could not find again by listing its infra under a tag, and is never asked for by name in the core:
// what it can do beyond the core contract is found once, as a set of Features.
//
// Invariants: Create is idempotent by token; whatever Create made can be found by List with the same tag; Delete is
// repeated by the caller until nothing is left; an error tells by its Kind what a caller may do next; an unknown
// outcome is never guessed.
package providers
