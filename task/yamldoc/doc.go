// Package yamldoc loads YAML written by people so that whoever reads it can point at the exact place of a mistake.
//
// It owns the safety of the input (size, encoding, depth, alias expansion, duplicate keys), the error type that carries
// file, line, column and field, and the "did you mean" suggestions. It knows nothing of tasks, configs or any schema.
//
// Invariants: the nodes it returns hold no alias and no merge key, have unique keys in every mapping, and are bounded in
// number and depth whatever the input was; loading never panics.
package yamldoc
