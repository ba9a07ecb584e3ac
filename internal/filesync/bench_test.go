package filesync

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manyFiles makes 10,000 files of 10 KB in 100 folders: 100 MB.
func manyFiles(b *testing.B) string {
	root := b.TempDir()
	for d := range 100 {
		dir := filepath.Join(root, fmt.Sprintf("dir%03d", d))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 100 {
			body := strings.Repeat(fmt.Sprintf("line %d of file %d\n", d, i), 10<<10/18)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%03d.txt", i)), []byte(body), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	return root
}

func BenchmarkSync10kFiles(b *testing.B) {
	root := manyFiles(b)
	b.Run("scan", func(b *testing.B) {
		for b.Loop() {
			scan(b, root)
		}
	})
	age(b, root)
	cache := OpenHashCache(filepath.Join(b.TempDir(), "c"))
	b.Run("scan-cached", func(b *testing.B) {
		for b.Loop() {
			if _, err := Scan(b.Context(), root, ScanOptions{Cache: cache}); err != nil {
				b.Fatal(err)
			}
			if err := cache.Save(); err != nil {
				b.Fatal(err)
			}
		}
	})
	tr := scan(b, root)
	for _, raw := range []bool{false, true} {
		b.Run(fmt.Sprintf("pack-raw=%v", raw), func(b *testing.B) {
			var buf bytes.Buffer
			for b.Loop() {
				buf.Reset()
				if err := WritePack(b.Context(), &buf, tr, tr.Manifest.Hashes(), PackOptions{Raw: raw}); err != nil {
					b.Fatal(err)
				}
				if _, err := ReadPack(b.Context(), &buf, PackLimits{}, memBlobs{}.sink); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("apply-first", func(b *testing.B) {
		for b.Loop() {
			dst := b.TempDir()
			if _, err := Apply(b.Context(), tr.Manifest, Target{Dst: dst, Index: OpenIndex(dst + ".ix")}, tr); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("place-first", func(b *testing.B) {
		var pack bytes.Buffer
		if err := WritePack(b.Context(), &pack, tr, tr.Manifest.InOrder(tr.Manifest.Hashes()), PackOptions{Raw: true}); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			dst := b.TempDir()
			tg := Target{Dst: dst, Index: OpenIndex(dst + ".ix"), Trusted: true}
			need, err := Plan(b.Context(), tr.Manifest, tg)
			if err != nil {
				b.Fatal(err)
			}
			p, err := NewPlacer(b.Context(), tr.Manifest, tg, &need)
			if err != nil {
				b.Fatal(err)
			}
			rest := memBlobs{}
			_, err = ReadPack(b.Context(), bytes.NewReader(pack.Bytes()), PackLimits{}, func(hash string, size int64, r io.Reader) error {
				done, err := p.Add(hash, size, r)
				if !done && err == nil {
					err = rest.sink(hash, size, r)
				}
				return err
			})
			if err = p.Close(err); err != nil {
				b.Fatal(err)
			}
			tg.Planned = &need
			if _, err := Apply(b.Context(), tr.Manifest, tg, rest); err != nil {
				b.Fatal(err)
			}
		}
	})
	dst := b.TempDir()
	ix := OpenIndex(dst + ".ix")
	if _, err := Apply(b.Context(), tr.Manifest, Target{Dst: dst, Index: ix}, tr); err != nil {
		b.Fatal(err)
	}
	b.Run("plan-and-apply-unchanged", func(b *testing.B) {
		for b.Loop() {
			x := OpenIndex(ix.path)
			if n, err := Plan(b.Context(), tr.Manifest, Target{Dst: dst, Index: x}); err != nil || len(n.Missing) > 0 {
				b.Fatal(n, err)
			}
			if _, err := Apply(b.Context(), tr.Manifest, Target{Dst: dst, Index: x}, tr); err != nil {
				b.Fatal(err)
			}
		}
	})
}
