package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// arrayPlace is how far the log of an array was read: by element, or, where it is followed, by batch.
type arrayPlace struct {
	element, attempt int
	// at is, of the attempt that is read, the next byte wanted by "rank/phase"; of batches that by "batch.node".
	at   map[string]int64
	done map[int][]int64 // by node, batches that were read to their end
}

// element gives where the place of a frame's bytes is held, and the number of its first byte there. What comes before an element or
// attempt that begins is past.
func (s *logReader) element(f LogFrame) (at map[string]int64, key string, first int64) {
	if s.array == nil {
		s.array = &arrayPlace{at: map[string]int64{}, done: map[int][]int64{}}
	}
	a := s.array
	if f.Batch > 0 {
		return a.at, fmt.Sprintf("%d.%d", f.Batch, f.BatchNode), f.BatchOffset
	}
	if a.element != *f.Element || a.attempt != f.Attempt {
		a.element, a.attempt = *f.Element, f.Attempt
		for k := range a.at {
			if strings.Contains(k, "/") {
				delete(a.at, k)
			}
		}
	}
	return a.at, strconv.Itoa(f.Rank) + "/" + f.Phase, f.Offset
}

// batch takes in what a frame without bytes tells of a batch.
func (s *logReader) batch(f LogFrame) error {
	zero := 0
	f.Element = &zero
	at, key, first := s.element(f)
	if !f.BatchDone {
		at[key] = max(at[key], first)
		return nil
	}
	delete(at, key)
	s.array.done[f.BatchNode] = append(s.array.done[f.BatchNode], f.Batch)
	s.progress()
	f.Element = nil
	if err := s.fn(LogChunk{LogFrame: f}); err != nil {
		return &finalError{err}
	}
	return nil
}

// cursor is where to go on by element.
func (a *arrayPlace) cursor() string {
	var parts []string
	for k, n := range a.at {
		if strings.Contains(k, "/") {
			parts = append(parts, fmt.Sprintf("%d.%d@%s:%d", a.element, a.attempt, k, n))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// batches is where to go on by batch.
func (a *arrayPlace) batches() string {
	if a == nil {
		return ""
	}
	var parts []string
	for node, list := range a.done {
		parts = append(parts, strconv.Itoa(node)+":"+FormatIDs(list))
	}
	for k, n := range a.at {
		if !strings.Contains(k, "/") {
			parts = append(parts, fmt.Sprintf("%s@%d", k, n))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ";")
}
