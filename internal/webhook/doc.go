// Package webhook posts signed messages to addresses that users name.
//
// It owns the signature (that of the Standard Webhooks specification, headers webhook-id, webhook-timestamp and
// webhook-signature), the rule which hosts may be reached, and one attempt to post. It must not know what a message says,
// where messages wait, or when one is tried again.
//
// Invariants:
//   - A connection is opened only to an address that the rules allow, judged after the name was resolved: a name that
//     points elsewhere than it did a moment ago gains nothing.
//   - An attempt ends within its time limit, reads a bounded part of the answer, and gives nothing of the answer's content away.
//   - It never leaves the host that was named: redirects elsewhere are failures.
package webhook
