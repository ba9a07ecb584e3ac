// Package providertest is the conformance suite of providers: every provider runs it in a few lines against its
// emulator, its lab or its memory backend. A test that a provider cannot pass is skipped by name, with a reason.
//
// It must not know any provider: what it needs beyond the contract (killing a node behind the provider's back, a
// stranger's machine, opening the provider anew) comes as hooks of the Harness; a hook that is nil has its tests skipped by name.
// Every test makes clusters of its own and deletes them, so a suite may run against an infra that holds others.
package providertest
