package batchlog

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// texts reads all that is kept, by element.
func texts(t *testing.T, dir string, id ID) (out map[int]string, whole bool) {
	t.Helper()
	pieces, _, whole, err := Pieces(dir, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	by := map[int][]Piece{}
	for _, p := range pieces {
		if p.Cut == "" {
			by[p.Element] = append(by[p.Element], p)
		}
	}
	out = map[int]string{}
	for e, ps := range by {
		f, err := os.Open(id.Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		s := Sections(f, ps)
		b, err := io.ReadAll(s)
		if err != nil {
			t.Fatal(err)
		}
		out[e] = string(b)
		if _, err := s.Seek(-1, io.SeekEnd); err != nil {
			t.Fatal(err)
		}
		if last, err := io.ReadAll(s); err != nil || string(last) != out[e][len(out[e])-1:] {
			t.Errorf("the last byte of %q is %q, %v", out[e], last, err)
		}
		f.Close()
	}
	return out, whole
}

func out(element int, offset int64, text string) Output {
	return Output{Element: element, Phase: "run", Offset: offset, Len: int64(len(text))}
}

func TestWriter(t *testing.T) {
	dir, id := filepath.Join(t.TempDir(), "batches"), ID{Batch: 7, Rank: 1}
	if p, next, whole, err := Pieces(dir, id, 0); len(p) > 0 || next != 0 || whole || err != nil {
		t.Errorf("%v %d %v %v", p, next, whole, err)
	}
	if l, err := List(dir); l != nil || err != nil {
		t.Errorf("%v %v", l, err)
	}
	w := NewWriter(dir, id)
	if err := w.Append([]Output{out(3, 0, "abc"), out(4, 0, "x")}, strings.NewReader("abcx")); err != nil {
		t.Fatal(err)
	}
	// Another writer, of what is there in part.
	other := NewWriter(dir, id)
	if err := other.Append([]Output{out(3, 1, "bcde"), out(4, 0, "x"), out(5, 0, "new")}, strings.NewReader("bcdexnew")); err != nil {
		t.Fatal(err)
	}
	if err := w.Append([]Output{out(4, 9, "gap"), out(5, 3, "er")}, strings.NewReader("gaper")); !errors.Is(err, ErrGap) {
		t.Error(err)
	}
	got, whole := texts(t, dir, id)
	if fmt.Sprint(got) != "map[3:abcde 4:x 5:newer]" || whole {
		t.Errorf("%v %v", got, whole)
	}
	have, err := Have(dir, id, 4)
	if err != nil || len(have) != 2 || have[Output{Element: 3, Phase: "run"}] != 5 {
		t.Errorf("%v %v", have, err)
	}
	// A crash leaves bytes that no index names, and half a line.
	tear := func(path, text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	tear(id.Path(dir), "junk")
	tear(id.growing(dir), `{"i":3,"r":0,"p":"ru`)
	if got, _ := texts(t, dir, id); got[3] != "abcde" {
		t.Errorf("%v", got)
	}
	if err := NewWriter(dir, id).Append([]Output{out(3, 5, "f")}, strings.NewReader("f")); err != nil {
		t.Fatal(err)
	}
	if ids, err := Growing(dir, 7); err != nil || len(ids) != 1 || ids[0] != id {
		t.Errorf("%v %v", ids, err)
	}
	if err := w.Finish("lost"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Finish("again"), other.Finish("")); err != nil {
		t.Fatal(err)
	}
	if err := w.Append([]Output{out(3, 6, "late")}, strings.NewReader("late")); !errors.Is(err, ErrWhole) {
		t.Error(err)
	}
	got, whole = texts(t, dir, id)
	if fmt.Sprint(got) != "map[3:abcdef 4:x 5:newer]" || !whole || !IsWhole(dir, id) {
		t.Errorf("%v %v", got, whole)
	}
	pieces, _, _, err := Pieces(dir, id, 0)
	if last := pieces[len(pieces)-1]; err != nil || last.Cut != "lost" {
		t.Errorf("%+v %v", last, err)
	}
	if ids, err := Growing(dir, 7); err != nil || len(ids) != 0 {
		t.Errorf("%v %v", ids, err)
	}
	// One that nothing was printed of is whole too.
	if err := NewWriter(dir, ID{Batch: 2}).Finish(""); err != nil {
		t.Fatal(err)
	}
	list, err := List(dir)
	if err != nil || len(list) != 2 || list[0].Batch != 2 || !list[1].Whole || list[1].ID != id {
		t.Errorf("%+v %v", list, err)
	}
}

// However output is cut and repeated, each element's comes out as it was, for a reader who goes on where he was too.
func TestRandomCuts(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	dir, id := t.TempDir(), ID{Batch: 1}
	want, sent := map[int]string{}, map[int]int{}
	for e := range 5 {
		want[e] = strings.Repeat(fmt.Sprintf("line of %d\n", e), 20+rng.Intn(50))
	}
	seen, at := map[int]int64{}, int64(0)
	writers := []*Writer{NewWriter(dir, id), NewWriter(dir, id)}
	for open := 5; open > 0; {
		var outs []Output
		var data strings.Builder
		for e, text := range want {
			from := max(0, sent[e]-rng.Intn(20))
			to := min(len(text), from+rng.Intn(60))
			if to <= from {
				continue
			}
			outs = append(outs, out(e, int64(from), text[from:to]))
			data.WriteString(text[from:to])
			if to == len(text) && sent[e] < to {
				open--
			}
			sent[e] = max(sent[e], to)
		}
		if err := writers[rng.Intn(2)].Append(outs, strings.NewReader(data.String())); err != nil {
			t.Fatal(err)
		}
		pieces, next, _, err := Pieces(dir, id, at)
		if err != nil {
			t.Fatal(err)
		}
		for at = next; len(pieces) > 0; pieces = pieces[1:] {
			seen[pieces[0].Element] += pieces[0].Len
		}
	}
	got, _ := texts(t, dir, id)
	for e, text := range want {
		if got[e] != text || seen[e] != int64(len(text)) {
			t.Errorf("element %d: %d bytes, %d read, want %d", e, len(got[e]), seen[e], len(text))
		}
	}
}
