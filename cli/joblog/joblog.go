// Package joblog writes the raw logs of a job's ranks to one stream, each line after a prefix that names its rank.
//
// Bytes pass through as they are: nothing is decoded, added or dropped inside a line. On one node they pass at once,
// half lines too. On several nodes, or of several elements of an array, a half line waits for its end, so that they don't mix within a
// line. A carriage
// return counts as the end of a line too (progress bars redraw themselves), so the prefix follows the redrawing.
package joblog

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/skyloom/skyloom/api"
)

// maxHeld is how many bytes of a half line are held back before they are shown anyway.
const maxHeld = 64 << 10

// Printer writes log chunks. The zero value is not ready; use New.
type Printer struct {
	w     io.Writer
	style func(string) string
	name  string
	nodes int
	// Of a managed job with several tasks: their names, and how many nodes the one has that was begun last.
	tasks map[int]string
	ranks map[string]*rank
	open  *rank // whose half line stands at the end of the output
}

// rank is the state of one rank and phase.
type rank struct {
	batch  [2]int64 // of an element of an array that is followed: batch and node
	prefix []byte
	mid    bool // its last byte shown was inside a line
	cr     bool // its last byte shown was a carriage return
	held   []byte
}

// New makes a printer; style paints prefixes (nil: not at all).
func New(w io.Writer, style func(string) string) *Printer {
	return &Printer{w: w, style: style, ranks: map[string]*rank{}}
}

// Write shows one chunk. The first one, without data, names the job and tells the number of nodes.
func (p *Printer) Write(c api.LogChunk) error {
	if c.JobName != "" {
		p.name = c.JobName
	}
	if c.TaskName != "" {
		if p.tasks == nil {
			p.tasks = map[int]string{}
		}
		p.tasks[c.Task] = c.TaskName
	}
	if c.Nodes > 0 {
		p.nodes = c.Nodes
	}
	batch := [2]int64{c.Batch, int64(c.BatchNode)}
	if c.BatchDone {
		return p.end(batch)
	}
	if len(c.Data) == 0 {
		return nil
	}
	key := fmt.Sprintf("%d.%d/%d/%s/%d", c.Task, c.Attempt, c.Rank, c.Phase, c.PID)
	if c.Element != nil {
		key = fmt.Sprintf("element %d %s", *c.Element, key)
		if c.Batch == 0 && p.ranks[key] == nil { // one comes after the other
			if err := p.end(batch); err != nil {
				return err
			}
		}
	}
	r := p.ranks[key]
	if r == nil {
		r = &rank{batch: batch, prefix: []byte(p.prefix(c.LogFrame))}
		p.ranks[key] = r
	}
	if p.nodes <= 1 && len(p.tasks) <= 1 && c.Element == nil {
		return p.emit(r, c.Data)
	}
	data := append(r.held, c.Data...)
	cut := bytes.LastIndexAny(data, "\r\n") + 1
	if cut == len(data) && cut > 0 && data[cut-1] == '\r' { // a line feed may follow
		cut--
		cut = bytes.LastIndexAny(data[:cut], "\r\n") + 1
	}
	if len(data)-cut > maxHeld {
		cut = len(data)
	}
	err := p.emit(r, data[:cut])
	r.held = append([]byte(nil), data[cut:]...)
	return err
}

// end shows what was held back of the elements of a batch, or, where there is none, of the element before: nothing more comes of them.
func (p *Printer) end(batch [2]int64) error {
	for key, r := range p.ranks {
		if r.batch != batch || !strings.HasPrefix(key, "element ") {
			continue
		}
		delete(p.ranks, key)
		if err := p.emit(r, r.held); err != nil {
			return err
		}
	}
	return nil
}

// Close shows what was held back, and ends a line that was left open, so that what follows starts on its own line.
func (p *Printer) Close() error {
	for _, r := range p.ranks {
		if len(r.held) > 0 {
			if err := p.emit(r, r.held); err != nil {
				return err
			}
			r.held = nil
		}
	}
	if p.open != nil {
		p.open.mid, p.open = false, nil
		_, err := p.w.Write([]byte("\n"))
		return err
	}
	return nil
}

func (p *Printer) emit(r *rank, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	var out bytes.Buffer
	if p.open != nil && p.open != r { // another rank's half line, shown for its length
		out.WriteByte('\n')
		p.open.mid = false
	}
	for len(data) > 0 {
		if !r.mid && !(r.cr && data[0] == '\n') {
			out.Write(r.prefix)
		}
		i := bytes.IndexAny(data, "\r\n")
		if i < 0 {
			out.Write(data)
			r.mid, r.cr = true, false
			break
		}
		out.Write(data[:i+1])
		r.mid, r.cr = false, data[i] == '\r'
		data = data[i+1:]
	}
	p.open = nil
	if r.mid {
		p.open = r
	}
	_, err := p.w.Write(out.Bytes())
	return err
}

func (p *Printer) prefix(f api.LogFrame) string {
	who := p.name
	if name := p.tasks[f.Task]; name != "" {
		who = name
	}
	if p.nodes > 1 {
		node := f.Node
		if node == "" {
			node = api.NodeName(f.Rank)
		}
		if p.tasks[f.Task] != "" {
			node = who + " " + node
		}
		who = node
		who += fmt.Sprintf(", rank=%d", f.RankInJob())
	} else if who == "" {
		who = "task"
	}
	if f.Element != nil {
		who += fmt.Sprintf(" %d", *f.Element)
		if f.Rank > 0 {
			who += fmt.Sprintf(", rank=%d", f.Rank)
		}
		if f.Attempt > 1 {
			who += fmt.Sprintf(", attempt %d", f.Attempt)
		}
	}
	if f.PID > 0 {
		who += fmt.Sprintf(", pid=%d", f.PID)
	}
	s := "(" + who + ")"
	if p.style != nil {
		s = p.style(s)
	}
	return s + " "
}
