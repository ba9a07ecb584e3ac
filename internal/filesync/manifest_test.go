package filesync

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var (
	hashA = strings.Repeat("a1", 32)
	hashB = strings.Repeat("b2", 32)
)

func sample() *Manifest {
	return &Manifest{Entries: []Entry{
		{Path: "a.txt", Kind: KindFile, Mode: 0o644, Size: 5, ModTime: 1700000000123456789, Hash: hashA},
		{Path: "dir", Kind: KindDir, Mode: 0o755},
		{Path: "dir-b", Kind: KindLink, Link: "../out"},
		{Path: "dir/run.sh", Kind: KindFile, Mode: 0o700, Size: 1 << 40, ModTime: -5, Hash: hashB},
		{Path: "dir/sub", Kind: KindDir, Mode: 0o500},
		{Path: "dir/sub/\xff\xfe", Kind: KindFile, Mode: 0, Hash: strings.Repeat("0", 64)},
	}}
}

func TestManifestRoundTrip(t *testing.T) {
	m := sample()
	data, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(bytes.NewReader(data), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Entries) != fmt.Sprint(m.Entries) || got.ID() != m.ID() {
		t.Fatalf("got %v, want %v", got.Entries, m.Entries)
	}
	if files, n := m.Totals(); files != 3 || n != 5+1<<40 {
		t.Fatalf("totals %d, %d", files, n)
	}
	if hs := m.Hashes(); len(hs) != 3 || hs[1] != hashA {
		t.Fatalf("hashes %v", hs)
	}
	if m.Sizes()[hashB] != 1<<40 {
		t.Fatal("sizes")
	}
}

func TestManifestIDCoversEverything(t *testing.T) {
	base := sample().ID()
	for i, change := range []func(*Manifest){
		func(m *Manifest) { m.Entries[0].Mode = 0o600 },
		func(m *Manifest) { m.Entries[0].ModTime++ },
		func(m *Manifest) { m.Entries[0].Hash = hashB },
		func(m *Manifest) { m.Entries[0].Size++ },
		func(m *Manifest) { m.Entries[0].Path = "a.tx" },
		func(m *Manifest) { m.Entries[2].Link = "x" },
		func(m *Manifest) { m.Entries = m.Entries[:5] },
	} {
		m := sample()
		change(m)
		if m.ID() == base {
			t.Errorf("change %d keeps the id", i)
		}
	}
}

func TestHostileManifests(t *testing.T) {
	file := func(p string) Entry { return Entry{Path: p, Kind: KindFile, Hash: hashA} }
	dir := func(p string) Entry { return Entry{Path: p, Kind: KindDir} }
	for name, es := range map[string][]Entry{
		"climbs":           {file("../x")},
		"climbs inside":    {dir("a"), file("a/../../x")},
		"absolute":         {file("/etc/passwd")},
		"empty path":       {file("")},
		"dot":              {file("./x")},
		"double slash":     {dir("a"), file("a//x")},
		"trailing slash":   {dir("a/")},
		"duplicate":        {file("a"), file("a")},
		"unsorted":         {file("b"), file("a")},
		"nul":              {file("a\x00b")},
		"long path":        {file(strings.Repeat("a/", 2500) + "x")},
		"long name":        {file(strings.Repeat("a", 256))},
		"through a link":   {{Path: "l", Kind: KindLink, Link: "/etc"}, file("l/passwd")},
		"through a file":   {file("f"), file("f/x")},
		"no parent":        {file("d/x")},
		"bad hash":         {{Path: "a", Kind: KindFile, Hash: "zz"}},
		"upper-case hash":  {{Path: "a", Kind: KindFile, Hash: strings.ToUpper(hashA)}},
		"setuid":           {{Path: "a", Kind: KindFile, Hash: hashA, Mode: 0o4755}},
		"negative size":    {{Path: "a", Kind: KindFile, Hash: hashA, Size: -1}},
		"two sizes":        {{Path: "a", Kind: KindFile, Hash: hashA, Size: 1}, {Path: "b", Kind: KindFile, Hash: hashA, Size: 2}},
		"empty link":       {{Path: "a", Kind: KindLink}},
		"nul in link":      {{Path: "a", Kind: KindLink, Link: "a\x00"}},
		"folder with hash": {{Path: "a", Kind: KindDir, Hash: hashA}},
		"unknown kind":     {{Path: "a", Kind: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Manifest{Entries: es}
			if err := m.Validate(); !errors.Is(err, ErrInvalid) {
				t.Fatalf("Validate: %v", err)
			}
			data, err := m.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Decode(bytes.NewReader(data), Limits{}); !errors.Is(err, ErrInvalid) && name != "upper-case hash" && name != "bad hash" && name != "folder with hash" {
				t.Fatalf("Decode: %v, %v", got, err)
			}
		})
	}
}

func TestDecodeDamage(t *testing.T) {
	data, _ := sample().Bytes()
	for cut := range len(data) {
		if _, err := Decode(bytes.NewReader(data[:cut]), Limits{}); !errors.Is(err, ErrInvalid) {
			t.Fatalf("cut at %d of %d: %v", cut, len(data), err)
		}
	}
	big := &Manifest{}
	for i := range 2000 {
		big.Entries = append(big.Entries, Entry{Path: fmt.Sprintf("f%06d", i), Kind: KindFile, Hash: hashA})
	}
	data, _ = big.Bytes()
	for _, l := range []Limits{{MaxEntries: 1999}, {MaxBytes: 1000}} {
		if _, err := Decode(bytes.NewReader(data), l); !errors.Is(err, ErrInvalid) {
			t.Fatalf("%+v: %v", l, err)
		}
	}
	if _, err := Decode(bytes.NewReader(data), Limits{MaxEntries: 2000}); err != nil {
		t.Fatal(err)
	}
}

func TestLeadsOutside(t *testing.T) {
	for _, c := range []struct {
		path, target string
		want         bool
	}{
		{"a", "b", false}, {"a", "../b", true}, {"d/a", "../b", false}, {"d/a", "../../b", true},
		{"a", "/etc", true}, {"d/e/a", "../../x/../../y", true}, {"a", "x/../y", false}, {"a", ".", false}, {"a", `C:\x`, true},
	} {
		if got := leadsOutside(c.path, c.target); got != c.want {
			t.Errorf("%s -> %s: %v", c.path, c.target, got)
		}
	}
}

func TestManifestRoundTripProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &Manifest{}
		seen := map[string]bool{}
		names := rapid.SliceOfN(rapid.StringMatching(`[a-z.\- ]{1,6}`), 0, 30).Draw(t, "names")
		for i, n := range names {
			if n == "." || n == ".." || seen[n] {
				continue
			}
			seen[n] = true
			switch i % 3 {
			case 0:
				m.Entries = append(m.Entries, Entry{Path: n, Kind: KindFile, Mode: uint32(rapid.IntRange(0, 0o777).Draw(t, "mode")),
					ModTime: rapid.Int64().Draw(t, "mtime"), Size: 7, Hash: hashA})
			case 1:
				m.Entries = append(m.Entries, Entry{Path: n, Kind: KindDir, Mode: 0o755}, Entry{Path: n + "/x", Kind: KindLink, Link: "y"})
			default:
				m.Entries = append(m.Entries, Entry{Path: n, Kind: KindLink, Link: n})
			}
		}
		sortEntries(m.Entries)
		data, err := m.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(bytes.NewReader(data), Limits{})
		if err != nil || got.ID() != m.ID() {
			t.Fatalf("%v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	data, _ := sample().Bytes()
	f.Add(data)
	f.Add([]byte(manifestMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(bytes.NewReader(data), Limits{MaxEntries: 10_000, MaxBytes: 1 << 20})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		if err := (&Manifest{Entries: m.Entries}).Validate(); err != nil {
			t.Fatal(err)
		}
		again, err := m.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := Decode(bytes.NewReader(again), Limits{}); err != nil || n.ID() != m.ID() {
			t.Fatalf("round trip: %v", err)
		}
	})
}
