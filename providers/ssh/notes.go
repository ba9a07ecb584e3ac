package ssh

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

// note says where the nodes of a cluster are or may be. It is written before anything is made on a host, and removed when
// nothing of the cluster is left anywhere.
type note struct {
	Ref     providers.ClusterRef `json:"ref"`
	Token   string               `json:"token"`
	Nodes   int                  `json:"nodes"`
	Spec    providers.NodeSpec   `json:"spec"`
	User    string               `json:"user,omitempty"`
	Created time.Time            `json:"created"`
	// Authority signs the keys with which the nodes meet; nil for a cluster of one node.
	Authority *authority     `json:"authority,omitempty"`
	Ranks     map[int]*noted `json:"ranks"`
	// Maybe are hosts that fell silent while a node was made there; another took its place.
	Maybe []Host `json:"maybe,omitempty"`
}

// noted is one node: its host, and what was last known of it.
type noted struct {
	Host Host             `json:"host"`
	Addr string           `json:"addr,omitempty"`
	Node *sharedhost.Node `json:"node,omitempty"` // nil: it was about to be made
}

var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// checkRef refuses names that are no safe part of a path.
func checkRef(ref providers.ClusterRef) error {
	if !safeName.MatchString(ref.Name) || !safeName.MatchString(ref.Hash) || ref.Installation == "" {
		return providers.Errorf(providers.Invalid, providers.ScopeCloud, "ssh: a cluster needs an installation, and a name and hash of letters, digits, dots and dashes (got %q, %q)", ref.Name, ref.Hash)
	}
	return nil
}

func (p *Provider) notesDir() string { return filepath.Join(p.o.Home, "ssh", "clusters") }

func (p *Provider) loadNotes() error {
	files, _ := filepath.Glob(filepath.Join(p.notesDir(), "*.json"))
	for _, f := range files {
		n := &note{}
		if err := durable.ReadJSON(f, n); err != nil {
			return &providers.Error{Kind: providers.Internal, Scope: providers.ScopeCloud, Msg: "ssh: a note of where nodes are can't be read: " + f, Err: err,
				Hint: "move the file away; nodes that it tells of are found again on hosts that answer"}
		}
		p.notes[n.Ref.NameOnCloud()] = n
	}
	return nil
}

// noteOf gives a copy of a cluster's note, or nil.
func (p *Provider) noteOf(ref providers.ClusterRef) *note {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.notes[ref.NameOnCloud()]
	if n == nil || n.Ref != ref {
		return nil
	}
	c := *n
	c.Ranks = maps.Clone(n.Ranks)
	c.Maybe = slices.Clone(n.Maybe)
	return &c
}

// keep writes a note down. One that tells of nothing is removed.
func (p *Provider) keep(n *note) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	path := filepath.Join(p.notesDir(), n.Ref.NameOnCloud()+".json")
	if len(n.Ranks) == 0 && len(n.Maybe) == 0 {
		delete(p.notes, n.Ref.NameOnCloud())
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return internal(err, "remove a note")
		}
		return nil
	}
	if err := os.MkdirAll(p.notesDir(), 0o700); err != nil {
		return internal(err, "note down where the nodes are")
	}
	if err := durable.WriteJSON(path, n); err != nil {
		return internal(err, "note down where the nodes are")
	}
	c := *n
	c.Ranks = maps.Clone(n.Ranks)
	c.Maybe = slices.Clone(n.Maybe)
	p.notes[n.Ref.NameOnCloud()] = &c
	return nil
}

// hosts are those that a note names, each once.
func (n *note) hosts() (out []Host) {
	seen := map[string]bool{}
	add := func(h Host) {
		if k := h.Pool + "/" + h.Name; !seen[k] {
			seen[k] = true
			out = append(out, h)
		}
	}
	ranks := slices.Sorted(maps.Keys(n.Ranks))
	for _, r := range ranks {
		add(n.Ranks[r].Host)
	}
	for _, h := range n.Maybe {
		add(h)
	}
	return out
}

// matching gives copies of the notes under a tag (its zero value: all), in order.
func (p *Provider) matching(tag providers.Tag) (out []*note) {
	p.mu.Lock()
	var refs []providers.ClusterRef
	for _, n := range p.notes {
		if (tag.Installation == "" || n.Ref.Installation == tag.Installation) && (tag.ClusterHash == "" || n.Ref.Hash == tag.ClusterHash) {
			refs = append(refs, n.Ref)
		}
	}
	p.mu.Unlock()
	sort.Slice(refs, func(i, j int) bool { return refs[i].NameOnCloud() < refs[j].NameOnCloud() })
	for _, r := range refs {
		if n := p.noteOf(r); n != nil {
			out = append(out, n)
		}
	}
	return out
}

func (p *Provider) notedHosts(tag providers.Tag) (out []Host) {
	for _, n := range p.matching(tag) {
		out = append(out, n.hosts()...)
	}
	return out
}

// forgetFor is how long it is remembered that nothing is left of a cluster, so that no host is asked again.
const forgetFor = 10 * time.Minute

func (p *Provider) over(ref providers.ClusterRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, at := range p.ended {
		if time.Since(at) > forgetFor {
			delete(p.ended, k)
		}
	}
	p.ended[ref.Installation+"/"+ref.NameOnCloud()] = time.Now()
	p.ended[ref.Installation+"//"+ref.Hash] = time.Now()
}

func (p *Provider) isOver(installation, what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.ended[installation+"/"+what]
	return ok && time.Since(at) < forgetFor
}

func (p *Provider) begins(ref providers.ClusterRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ended, ref.Installation+"/"+ref.NameOnCloud())
	delete(p.ended, ref.Installation+"//"+ref.Hash)
}

// found says that a node of the cluster was seen on a host that was asked at a time. Nothing was taken to be left of it where a
// host was given up for gone; then it turned up again.
func (p *Provider) found(ref providers.ClusterRef, asked time.Time) {
	p.mu.Lock()
	at, over := p.ended[ref.Installation+"/"+ref.NameOnCloud()]
	p.mu.Unlock()
	if over && at.Before(asked) {
		p.begins(ref)
	}
}

// asked is what tells two requests apart: the spec without its price.
func asked(s providers.NodeSpec) json.RawMessage {
	s.PricePerHour = 0
	b, _ := json.Marshal(s)
	return b
}

func nodeID(ref providers.ClusterRef, rank int) string {
	return fmt.Sprintf("%s-%d", ref.NameOnCloud(), rank)
}
