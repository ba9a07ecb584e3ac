package filesync

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"sort"
	"testing"
)

func randomManifest(rnd *rand.Rand) *Manifest {
	m := &Manifest{}
	for _, dir := range []string{"a", "a/b", "c"} {
		m.Entries = append(m.Entries, Entry{Path: dir, Kind: KindDir, Mode: 0o755})
	}
	for i := range 40 {
		if rnd.Intn(3) == 0 {
			continue
		}
		p := fmt.Sprintf("%s/%02d", []string{"a", "a/b", "c"}[i%3], i)
		if rnd.Intn(5) == 0 {
			m.Entries = append(m.Entries, Entry{Path: p, Kind: KindLink, Link: fmt.Sprint("to", rnd.Intn(3))})
			continue
		}
		n := rnd.Intn(4)
		m.Entries = append(m.Entries, Entry{Path: p, Kind: KindFile, Mode: 0o644, Size: int64(n), ModTime: int64(rnd.Intn(3)), Hash: hashOf([]byte(fmt.Sprint(n)))})
	}
	sort.Slice(m.Entries, func(i, j int) bool { return m.Entries[i].Path < m.Entries[j].Path })
	return m
}

func TestDelta(t *testing.T) {
	rnd := rand.New(rand.NewSource(3))
	for range 300 {
		base, m := randomManifest(rnd), randomManifest(rnd)
		b, err := Diff(base, m).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		d, err := DecodeDelta(bytes.NewReader(b), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.Apply(base)
		if err != nil || got.ID() != m.ID() {
			t.Fatalf("%v\n%+v\n%+v", err, got, m)
		}
		if Diff(m, got).Len() != 0 {
			t.Fatal("a manifest differs from itself")
		}
	}
	big := &Manifest{Entries: []Entry{{Path: "d", Kind: KindDir, Mode: 0o755}}}
	for i := range 5000 {
		big.Entries = append(big.Entries, Entry{Path: fmt.Sprintf("d/%05d", i), Kind: KindFile, Hash: hashOf([]byte(fmt.Sprint(i))), Size: 1})
	}
	next := &Manifest{Entries: append([]Entry(nil), big.Entries...)}
	next.Entries[77].Size, next.Entries[77].Hash = 2, hashOf([]byte("other"))
	if b, err := Diff(big, next).Bytes(); err != nil || len(b) > 200 {
		t.Errorf("one changed file of 5000 takes %d bytes, %v", len(b), err)
	}
}

// TestDeltaHostile: nothing that a delta says makes a manifest that Decode would refuse.
func TestDeltaHostile(t *testing.T) {
	base := &Manifest{Entries: []Entry{{Path: "d", Kind: KindDir, Mode: 0o755}, {Path: "d/l", Kind: KindLink, Link: "/etc"}}}
	for name, entries := range map[string][]Entry{
		"climbs":         {{Path: "../x", Kind: KindDir}},
		"through a link": {{Path: "d/l/x", Kind: KindLink, Link: "y"}},
		"without folder": {{Path: "d", Kind: kindGone}},
		"out of order":   {{Path: "e", Kind: KindDir}, {Path: "a", Kind: KindDir}},
		"mode":           {{Path: "e", Kind: KindDir, Mode: 0o4755}},
	} {
		b, err := (&Delta{entries}).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		d, err := DecodeDelta(bytes.NewReader(b), Limits{})
		if err == nil {
			_, err = d.Apply(base)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b, _ := (&Delta{[]Entry{{Path: "x", Kind: kindGone}}}).Bytes()
	if _, err := Decode(bytes.NewReader(b), Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a delta was taken for a manifest: %v", err)
	}
	whole, _ := (&Manifest{Entries: []Entry{{Path: "x", Kind: kindGone}}}).Bytes()
	if _, err := Decode(bytes.NewReader(whole), Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a manifest with something gone: %v", err)
	}
	if _, err := DecodeDelta(bytes.NewReader(whole), Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a manifest was taken for a delta: %v", err)
	}
}
