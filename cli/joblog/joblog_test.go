package joblog

import (
	"math/rand"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
)

func chunk(rank int, data string) api.LogChunk {
	return api.LogChunk{LogFrame: api.LogFrame{Rank: rank, Phase: "run", PID: 100 + rank}, Data: []byte(data)}
}

func head(nodes int) api.LogChunk {
	return api.LogChunk{LogFrame: api.LogFrame{JobID: 1, JobName: "train", Nodes: nodes}}
}

func TestPrinter(t *testing.T) {
	cases := []struct {
		name   string
		nodes  int
		chunks []api.LogChunk
		want   string
	}{
		{"lines", 1, []api.LogChunk{chunk(0, "a\nb\n")}, "(train, pid=100) a\n(train, pid=100) b\n"},
		{"split line", 1, []api.LogChunk{chunk(0, "he"), chunk(0, "llo\nx\n")}, "(train, pid=100) hello\n(train, pid=100) x\n"},
		{"no end", 1, []api.LogChunk{chunk(0, "a\nend")}, "(train, pid=100) a\n(train, pid=100) end\n"},
		{"raw bytes", 1, []api.LogChunk{chunk(0, "\xff\x00\x1b[31mred\n")}, "(train, pid=100) \xff\x00\x1b[31mred\n"},
		{"empty lines", 1, []api.LogChunk{chunk(0, "\n\n")}, "(train, pid=100) \n(train, pid=100) \n"},
		{"crlf", 1, []api.LogChunk{chunk(0, "a\r\nb\r"), chunk(0, "\nc\r\n")}, "(train, pid=100) a\r\n(train, pid=100) b\r\n(train, pid=100) c\r\n"},
		{"progress bar", 1, []api.LogChunk{chunk(0, "1%\r2%\r3%\n")}, "(train, pid=100) 1%\r(train, pid=100) 2%\r(train, pid=100) 3%\n"},
		{"two nodes don't mix in a line", 2, []api.LogChunk{chunk(0, "he"), chunk(1, "wor"), chunk(0, "ad\n"), chunk(1, "ker\n")},
			"(head, rank=0, pid=100) head\n(worker1, rank=1, pid=101) worker\n"},
		{"two nodes, open at the end", 2, []api.LogChunk{chunk(0, "left")}, "(head, rank=0, pid=100) left\n"},
		{"two nodes, bar", 2, []api.LogChunk{chunk(0, "1%\r2%\r"), chunk(0, "3%\n")}, "(head, rank=0, pid=100) 1%\r(head, rank=0, pid=100) 2%\r(head, rank=0, pid=100) 3%\n"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			p := New(&b, nil)
			for _, c := range append([]api.LogChunk{head(tc.nodes)}, tc.chunks...) {
				if err := p.Write(c); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(); err != nil || b.String() != tc.want {
				t.Errorf("got\n%q\nwant\n%q", b.String(), tc.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	var b strings.Builder
	p := New(&b, func(s string) string { return "<" + s + ">" })
	_ = p.Write(api.LogChunk{LogFrame: api.LogFrame{Phase: "setup"}, Data: []byte("x\n")})
	if b.String() != "<(task)> x\n" {
		t.Errorf("%q", b.String())
	}
	b.Reset()
	p = New(&b, nil)
	_ = p.Write(head(2))
	_ = p.Write(api.LogChunk{LogFrame: api.LogFrame{Rank: 1, Node: "gpu-7", PID: 5}, Data: []byte("x\n")})
	if b.String() != "(gpu-7, rank=1, pid=5) x\n" {
		t.Errorf("%q", b.String())
	}
}

// A line without an end is shown once it is long, and the others start on a line of their own.
func TestLongLine(t *testing.T) {
	var b strings.Builder
	p := New(&b, nil)
	_ = p.Write(head(2))
	long := strings.Repeat("x", maxHeld+1)
	_ = p.Write(chunk(0, long))
	_ = p.Write(chunk(1, "hi\n"))
	_ = p.Write(chunk(0, "y\n"))
	want := "(head, rank=0, pid=100) " + long + "\n(worker1, rank=1, pid=101) hi\n(head, rank=0, pid=100) y\n"
	if b.String() != want {
		t.Errorf("got %d bytes, want %d", b.Len(), len(want))
	}
}

// However a log is cut into chunks, without the prefixes it is the log.
func TestChunkingChangesNothing(t *testing.T) {
	text := "one\ntwo\r\nthree\rfour\n\n\x00five\n"
	for seed := range int64(50) {
		rng := rand.New(rand.NewSource(seed))
		for _, nodes := range []int{1, 2} {
			var b strings.Builder
			p := New(&b, nil)
			_ = p.Write(head(nodes))
			for rest := text; rest != ""; {
				n := 1 + rng.Intn(len(rest))
				_ = p.Write(chunk(0, rest[:n]))
				rest = rest[n:]
			}
			_ = p.Close()
			prefix := "(train, pid=100) "
			if nodes > 1 {
				prefix = "(head, rank=0, pid=100) "
			}
			if got := strings.ReplaceAll(b.String(), prefix, ""); got != text {
				t.Fatalf("seed %d: %q", seed, got)
			}
		}
	}
}

// Elements of an array have prefixes of their own and don't mix within a line; what was held back of one is shown when it is over.
func TestElements(t *testing.T) {
	piece := func(batch int64, element, attempt int, data string) api.LogChunk {
		return api.LogChunk{LogFrame: api.LogFrame{Element: &element, Attempt: attempt, Batch: batch, Phase: "run"}, Data: []byte(data)}
	}
	done := func(batch int64) api.LogChunk {
		return api.LogChunk{LogFrame: api.LogFrame{Batch: batch, BatchDone: true}}
	}
	for name, c := range map[string]struct {
		chunks []api.LogChunk
		want   string
	}{
		"by element": {[]api.LogChunk{piece(0, 3, 1, "a\nopen"), piece(0, 3, 2, "b\n"), piece(0, 17, 1, "c\n")},
			"(train 3) a\n(train 3) open\n(train 3, attempt 2) b\n(train 17) c\n"},
		"as it comes": {[]api.LogChunk{piece(1, 3, 1, "a\nha"), piece(2, 4, 1, "b\n"), piece(1, 3, 1, "lf\n"), piece(1, 3, 1, "open"), piece(2, 4, 1, "half"), done(1), piece(2, 4, 1, " line\n"), done(2)},
			"(train 3) a\n(train 4) b\n(train 3) half\n(train 3) open\n(train 4) half line\n"},
	} {
		var b strings.Builder
		p := New(&b, nil)
		for _, ch := range append([]api.LogChunk{head(0)}, c.chunks...) {
			if err := p.Write(ch); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(); err != nil || b.String() != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, b.String(), c.want)
		}
		if len(p.ranks) > 1 {
			t.Errorf("%s: %d are remembered", name, len(p.ranks))
		}
	}
}
