package journal

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// reader collects the numbers a journal tells.
func reader(got *[]int) func([]byte) error {
	return func(b []byte) error {
		var n int
		if err := json.Unmarshal(b, &n); err != nil {
			return err
		}
		*got = append(*got, n)
		return nil
	}
}

func with(t *testing.T, j *Journal, f func() error) {
	t.Helper()
	if err := j.Lock(); err != nil {
		t.Fatal(err)
	}
	defer j.Unlock()
	if err := f(); err != nil {
		t.Fatal(err)
	}
}

func TestShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x", "state")
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var fromA, fromB []int
	sync := func(j *Journal, got *[]int) { with(t, j, func() error { return j.Sync(reader(got)) }) }
	add := func(j *Journal, got *[]int, n ...any) {
		with(t, j, func() error {
			if err := j.Sync(reader(got)); err != nil {
				return err
			}
			return j.Append(n...)
		})
	}
	add(a, &fromA, 1, 2)
	add(b, &fromB, 3)
	sync(a, &fromA)
	if !reflect.DeepEqual(fromA, []int{3}) || !reflect.DeepEqual(fromB, []int{1, 2}) {
		t.Fatalf("a %v b %v", fromA, fromB)
	}
	with(t, a, func() error { return a.Rewrite(7) })
	fromB = nil
	sync(b, &fromB)
	if !reflect.DeepEqual(fromB, []int{7}) {
		t.Fatalf("after the rewrite: %v", fromB)
	}

	// A crash in the middle of a line loses that line only.
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString("12\n34")
	f.Close()
	fromA = nil
	sync(a, &fromA)
	add(a, &fromA, 5)
	fromB = nil
	sync(b, &fromB)
	if !reflect.DeepEqual(fromA, []int{12}) || !reflect.DeepEqual(fromB, []int{12, 5}) {
		t.Fatalf("after the crash: a %v b %v", fromA, fromB)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b.Close()
}
