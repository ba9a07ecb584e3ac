package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// load opens a journal and gives its keys and values.
func load(t *testing.T, path string) (*Journal, map[string]string, int) {
	t.Helper()
	got := map[string]string{}
	j, skipped, err := Open(path, func(r Record) error {
		if r.Value == nil {
			delete(got, r.Key)
			return nil
		}
		var s string
		err := json.Unmarshal(r.Value, &s)
		got[r.Key] = s
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, got, skipped
}

func batch(kv ...string) *Batch {
	b := &Batch{}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] == "" {
			b.Delete(kv[i])
		} else {
			b.Put(kv[i], kv[i+1])
		}
	}
	return b
}

func add(t *testing.T, j *Journal, kv ...string) {
	t.Helper()
	if err := j.Append(batch(kv...), false); err != nil {
		t.Fatal(err)
	}
}

// TestCutAnywhere cuts the file at every byte: what is read back is what the whole batches before the cut said, and
// the journal takes more.
func TestCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "j")
	j, _, _ := load(t, path)
	states := []map[string]string{{}}
	ends := []int64{0}
	for _, kv := range [][]string{{"a", "1", "b", "new\nline"}, {"a", "2"}, {"b", ""}, {"c", "x\"y"}} {
		add(t, j, kv...)
		next := maps.Clone(states[len(states)-1])
		for i := 0; i < len(kv); i += 2 {
			if next[kv[i]] = kv[i+1]; kv[i+1] == "" {
				delete(next, kv[i])
			}
		}
		states, ends = append(states, next), append(ends, j.size)
	}
	j.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		p := filepath.Join(dir, fmt.Sprint("cut", cut))
		os.WriteFile(p, whole[:cut], 0o600)
		want := 0
		for ends[want] < int64(cut) && want+1 < len(ends) && ends[want+1] <= int64(cut) {
			want++
		}
		j, got, skipped := load(t, p)
		if !maps.Equal(got, states[want]) || skipped != 0 {
			t.Fatalf("cut at %d: %v, expected %v (%d skipped)", cut, got, states[want], skipped)
		}
		add(t, j, "after", "cut")
		j.Close()
		j, got, _ = load(t, p)
		if got["after"] != "cut" {
			t.Fatalf("cut at %d: what came later is lost", cut)
		}
		j.Close()
	}
}

func TestBrokenLineWithin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, _, _ := load(t, path)
	add(t, j, "a", "1")
	first := j.size
	add(t, j, "b", "2")
	add(t, j, "c", "3")
	j.Close()
	b, _ := os.ReadFile(path)
	b[first+15] ^= 1
	os.WriteFile(path, b, 0o600)
	j, got, skipped := load(t, path)
	defer j.Close()
	if !maps.Equal(got, map[string]string{"a": "1", "c": "3"}) || skipped != 1 {
		t.Errorf("%v, %d skipped", got, skipped)
	}
}

func TestCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, _, _ := load(t, path)
	for i := range 100 {
		add(t, j, "a", fmt.Sprint(i), fmt.Sprint("b", i), "gone", fmt.Sprint("b", i), "")
	}
	before := j.size
	failing := errors.New("no")
	if err := j.Compact(func(func(string, any) error) error { return failing }); !errors.Is(err, failing) {
		t.Errorf("a failed compaction: %v", err)
	}
	add(t, j, "c", "kept")
	if err := j.Compact(func(put func(string, any) error) error { return errors.Join(put("a", "99"), put("c", "kept")) }); err != nil {
		t.Fatal(err)
	}
	add(t, j, "d", "after")
	if j.size > before/10 {
		t.Errorf("%d bytes of %d", j.size, before)
	}
	j.Close()
	j, got, _ := load(t, path)
	defer j.Close()
	if !maps.Equal(got, map[string]string{"a": "99", "c": "kept", "d": "after"}) {
		t.Errorf("%v", got)
	}
}

func TestConcurrentSync(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, _, _ := load(t, path)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 20 {
				if err := errors.Join(j.Append(batch(fmt.Sprintf("%d-%d", g, i), "v"), false), j.Sync()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	j.Close()
	j, got, _ := load(t, path)
	defer j.Close()
	if len(got) != 160 {
		t.Errorf("%d records", len(got))
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, content := range []string{"one", "two"} {
		if err := WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		b, _ := os.ReadFile(path)
		fi, _ := os.Stat(path)
		if string(b) != content || fi.Mode().Perm() != 0o640 {
			t.Errorf("%q %v", b, fi.Mode())
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// FuzzOpen reads files that hold anything: opening never fails on content, and what is appended then is read back.
func FuzzOpen(f *testing.F) {
	line, _ := encode([]Record{{"a", json.RawMessage(`"1"`)}})
	f.Add(line)
	f.Add(append(line, line[:7]...))
	f.Add([]byte("00000000 []\n\n\x00\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "j")
		os.WriteFile(path, content, 0o600)
		open := func() (*Journal, map[string]string) {
			got := map[string]string{}
			j, _, err := Open(path, func(r Record) error { got[r.Key] = string(r.Value); return nil })
			if err != nil {
				t.Fatal(err)
			}
			return j, got
		}
		j, before := open()
		add(t, j, "appended", "yes")
		j.Close()
		j, after := open()
		defer j.Close()
		before["appended"] = `"yes"`
		if !maps.Equal(before, after) {
			t.Errorf("%v, then %v", before, after)
		}
	})
}
