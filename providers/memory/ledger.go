package memory

import (
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/skyloom/skyloom/providers"
)

// Kinds of breaches.
const (
	Leak         = "leak"          // a machine lives whose owner does not
	DoubleCreate = "double-create" // one token made a rank twice, or two machines of one rank lived at once
	ForeignCall  = "foreign-call"  // a call for one cluster named a node of another
	ForeignDeath = "foreign-death" // a stranger's machine was deleted
)

// Breach is something that must never happen.
type Breach struct{ Kind, Node, Text string }

func (b Breach) Error() string { return b.Kind + ": " + b.Text }

// Entry is the life of one machine.
type Entry struct {
	NodeID       string
	Owner        providers.ClusterRef
	Token        string
	Rank         int
	Stranger     bool
	Born         time.Time
	Died         time.Time // zero: lives
	Reason       string    // of its end
	Bills        []Interval
	PricePerHour float64
}

// Ledger is a copy of everything there ever was.
type Ledger struct {
	At       time.Time
	Entries  []Entry // in the order of their creation
	Breaches []Breach
}

// Ledger gives the machines there ever were, as of now.
func (c *Cloud) Ledger() *Ledger {
	defer c.begin()()
	l := &Ledger{At: c.clock.Now(), Breaches: append([]Breach(nil), c.ledger...)}
	for _, m := range c.machines {
		l.Entries = append(l.Entries, Entry{NodeID: m.ID, Owner: m.Cluster, Token: m.Token, Rank: m.Rank, Stranger: m.Stranger, Born: m.CreatedAt,
			Died: m.DiedAt, Reason: m.Reason, Bills: append([]Interval(nil), m.Bills...), PricePerHour: m.Spec.PricePerHour})
	}
	sort.Slice(l.Entries, func(i, j int) bool { return l.Entries[i].NodeID != l.Entries[j].NodeID && l.less(i, j) })
	return l
}

func (l *Ledger) less(i, j int) bool {
	a, b := l.Entries[i], l.Entries[j]
	if a.Born.Equal(b.Born) {
		return a.NodeID < b.NodeID
	}
	return a.Born.Before(b.Born)
}

// Alive lists the machines that live and are ours.
func (l *Ledger) Alive() (out []Entry) {
	for _, e := range l.Entries {
		if e.Died.IsZero() && !e.Stranger {
			out = append(out, e)
		}
	}
	return out
}

// Check proves the books: every living machine is owned by one of the live cluster hashes, no token made a rank twice,
// no two machines of one rank of a cluster lived at the same time, no stranger's machine was touched. It joins all
// breaches into one error.
func (l *Ledger) Check(live map[string]bool) error {
	var errs []error
	for _, b := range l.Breaches {
		errs = append(errs, b)
	}
	add := func(kind string, e Entry, format string, args ...any) {
		errs = append(errs, Breach{Kind: kind, Node: e.NodeID, Text: "node " + e.NodeID + " " + fmt.Sprintf(format, args...)})
	}
	byToken := map[string]Entry{}
	byRank := map[string]Entry{} // the latest of a rank
	for _, e := range l.Entries {
		if e.Stranger {
			if e.Reason == ReasonDeleted {
				add(ForeignDeath, e, "is a stranger's and was deleted")
			}
			continue
		}
		if e.Died.IsZero() && !live[e.Owner.Hash] {
			add(Leak, e, "lives (since %s) and nobody owns cluster %s", e.Born.Format(time.TimeOnly), e.Owner.NameOnCloud())
		}
		tk := fmt.Sprintf("%s/%d", e.Token, e.Rank)
		if o, ok := byToken[tk]; ok {
			add(DoubleCreate, e, "and node %s were made by one token %s", o.NodeID, e.Token)
		}
		byToken[tk] = e
		rk := fmt.Sprintf("%s/%s/%d", e.Owner.Installation, e.Owner.Hash, e.Rank)
		if o, ok := byRank[rk]; ok && (o.Died.IsZero() || e.Born.Before(o.Died)) {
			add(DoubleCreate, e, "and node %s were rank %d of cluster %s at the same time", o.NodeID, e.Rank, e.Owner.NameOnCloud())
		}
		byRank[rk] = e
	}
	return errors.Join(errs...)
}

// Billed is the sum of all bills in US dollars, as of now.
func (l *Ledger) Billed() (dollars float64) {
	for _, e := range l.Entries {
		for _, b := range e.Bills {
			to := b.To
			if to.IsZero() {
				to = l.At
			}
			dollars += to.Sub(b.From).Hours() * e.PricePerHour
		}
	}
	return dollars
}
