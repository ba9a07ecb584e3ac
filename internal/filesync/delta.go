package filesync

import (
	"bytes"
	"io"
	"strings"
)

// Delta is what one manifest has otherwise than another, its base: for a tree of which little changed a small part of it.
type Delta struct {
	// entries are those that are new or changed, and of those that are gone the path; sorted.
	entries []Entry
}

const (
	// kindGone marks in a delta what the base has and the manifest has not.
	kindGone Kind = 4

	deltaMagic = "skymd1\n"
)

// Diff tells how m differs from base.
func Diff(base, m *Manifest) *Delta {
	d := &Delta{}
	old := base.Entries
	for i := range m.Entries {
		e := &m.Entries[i]
		for len(old) > 0 && old[0].Path < e.Path {
			d.entries = append(d.entries, Entry{Path: old[0].Path, Kind: kindGone})
			old = old[1:]
		}
		same := len(old) > 0 && old[0] == *e
		if len(old) > 0 && old[0].Path == e.Path {
			old = old[1:]
		}
		if !same {
			d.entries = append(d.entries, *e)
		}
	}
	for i := range old {
		d.entries = append(d.entries, Entry{Path: old[i].Path, Kind: kindGone})
	}
	return d
}

// Len is the number of entries that differ.
func (d *Delta) Len() int { return len(d.entries) }

// Bytes is the wire form: as that of a manifest.
func (d *Delta) Bytes() ([]byte, error) {
	var b bytes.Buffer
	err := encodeEntries(&b, deltaMagic, d.entries)
	return b.Bytes(), err
}

// DecodeDelta reads a delta in wire form. Damaged or oversized input gives an ErrInvalid; what it makes of a base is judged
// by Apply.
func DecodeDelta(r io.Reader, l Limits) (*Delta, error) {
	last := ""
	entries, err := decodeEntries(r, deltaMagic, l, func(e *Entry) error {
		if err := checkPath(e.Path); err != nil {
			return err
		}
		if last != "" && strings.Compare(e.Path, last) <= 0 {
			return invalidf("path %q is listed twice or out of order", short(e.Path))
		}
		last = e.Path
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Delta{entries}, nil
}

// Apply gives the manifest that the delta makes of its base. It is validated, but only its id tells whether base was the
// right one.
func (d *Delta) Apply(base *Manifest) (*Manifest, error) {
	m := &Manifest{Entries: make([]Entry, 0, len(base.Entries)+len(d.entries))}
	old := base.Entries
	for i := range d.entries {
		e := &d.entries[i]
		n := 0
		for n < len(old) && old[n].Path < e.Path {
			n++
		}
		m.Entries = append(m.Entries, old[:n]...)
		old = old[n:]
		if len(old) > 0 && old[0].Path == e.Path {
			old = old[1:]
		}
		if e.Kind != kindGone {
			m.Entries = append(m.Entries, *e)
		}
	}
	m.Entries = append(m.Entries, old...)
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return validated(m.Entries), nil
}
