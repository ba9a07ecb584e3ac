package rsyncd

import (
	"bytes"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNumbers sends numbers through every encoding and back.
func TestNumbers(t *testing.T) {
	values := []int64{0, 1, 2, 127, 128, 253, 254, 255, 256, 16383, 16384, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, 1<<21 - 1, 1 << 21, 1 << 24, 1<<28 - 1, 1 << 28, math.MaxInt32}
	long := append(append([]int64(nil), values...), math.MaxInt32+1, 1<<32, 1<<40, 1<<55, 1<<56, math.MaxInt64, -1)
	for _, proto := range []int{29, 30} {
		for _, mux := range []bool{false, true} {
			var wire bytes.Buffer
			out := newOutput(&wire)
			out.proto, out.mux = proto, mux
			for _, v := range values {
				out.varint(int32(v))
				out.varint30(int32(v))
				out.ndx(int32(v))
				out.ndx(ndxDone)
			}
			out.varint(-1)
			out.ndx(ndxDelStats)
			for _, v := range long {
				for least := leastFor(v); least <= 4; least++ {
					out.varlong(v, least)
				}
				out.varlong30(v, 3)
			}
			for _, s := range []string{"", "x", strings.Repeat("y", 127), strings.Repeat("z", 128), strings.Repeat("z", 1000)} {
				out.vstring(s)
				out.message(msgInfo, []byte("in between"))
			}
			out.flush()
			in := newInput(&wire)
			in.proto, in.mux = proto, mux
			told := 0
			in.message = func(code int, body []byte) {
				if code == msgInfo && string(body) == "in between" {
					told++
				}
			}
			bad := catch(func() {
				for _, v := range values {
					if a, b, c, d := in.varint(), in.varint30(), in.ndx(), in.ndx(); int64(a) != v || int64(b) != v || int64(c) != v || d != ndxDone {
						t.Errorf("%d became %d %d %d", v, a, b, c)
					}
				}
				if v, n := in.varint(), in.ndx(); v != -1 || n != ndxDelStats {
					t.Errorf("-1 became %d, %d became %d", v, ndxDelStats, n)
				}
				for _, v := range long {
					for least := leastFor(v); least <= 4; least++ {
						if got := in.varlong(least); got != v {
							t.Errorf("%d became %d", v, got)
						}
					}
					if got := in.varlong30(3); got != v {
						t.Errorf("%d became %d", v, got)
					}
				}
				for _, n := range []int{0, 1, 127, 128, 1000} {
					if s := in.vstring(); len(s) != n {
						t.Errorf("a text of %d bytes became one of %d", n, len(s))
					}
				}
			})
			if bad != nil {
				t.Fatalf("protocol %d, mux %v: %v", proto, mux, bad.err)
			}
			if mux && told < 4 { // the last one comes after the data
				t.Errorf("%d messages", told)
			}
		}
	}
}

// leastFor is the shortest form that can hold a number: a first byte tells of six more at most.
func leastFor(v int64) int {
	if v < 0 || v >= 1<<48 {
		return 3
	}
	return 1
}

func TestOrder(t *testing.T) {
	want := []string{".", "a", "b.txt", "z", "d.x/", "d.x/in", "d/", "d/file", "d/zz", "d/a/", "d/a/b", "d0/", "d0/x"}
	var list []*entry
	for _, n := range want {
		e := &entry{name: strings.TrimSuffix(n, "/"), mode: unix.S_IFREG}
		if n == "." || strings.HasSuffix(n, "/") {
			e.mode = unix.S_IFDIR
		}
		list = append(list, e)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		sortList(list)
		var got []string
		for _, e := range list {
			n := e.name
			if e.dir() && n != "." {
				n += "/"
			}
			got = append(got, n)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{"a": "a", "./a/b": "a/b", "/etc/x": "etc/x", ".": ".", "a//b/": "a/b", "..a": "..a"} {
		if got := cleanName(name); got != want {
			t.Errorf("%q became %q", name, got)
		}
	}
	for _, name := range []string{"", "..", "../x", "a/../../x", "a/..", "/../x", "a\x00b"} {
		if catch(func() { cleanName(name) }) == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// TestGarbage feeds what no rsync would send: the run ends with an error, outside of the destination nothing changes.
func TestGarbage(t *testing.T) {
	root := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		args := []string{"--server", "-logDtpre.LsfxCIvu", ".", filepath.Join(root, "dst") + "/"}
		if i%2 == 0 {
			args = []string{"--server", "--sender", "-logDtprce.LsfxCIvu", ".", filepath.Join(root, "dst")}
		}
		body := []byte{byte(29 + i%3), 0, 0, 0}
		n := rnd.IntN(300)
		for range n {
			b := byte(rnd.Uint32())
			if rnd.IntN(3) == 0 {
				b = []byte{0, 0, 1, 7, 0x41, 0xFF}[rnd.IntN(6)]
			}
			body = append(body, b)
		}
		done := make(chan int, 1)
		go func() { done <- Run(args, bytes.NewReader(body), io.Discard, io.Discard) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("it hangs on %x", body)
		}
	}
	left, _ := os.ReadDir(root)
	for _, e := range left {
		if e.Name() != "dst" {
			t.Errorf("%s was made", e.Name())
		}
	}
}
