package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skyloom/skyloom/internal/filesync"
)

// ErrBusy is in the chain of the error about a folder that kept changing.
var ErrBusy = errors.New("the folder kept changing")

// Times of a save.
const (
	quiet      = 200 * time.Millisecond // how long nothing may change before the folder is read
	quietLeast = 20 * time.Millisecond  // the same for folders that are written to all the time
	patience   = 3 * time.Second        // after which the second counts
	pollEvery  = 20 * time.Millisecond
)

// Print is a cheap mark of a folder's state: names, sizes, modes and times. A folder that is absent has one too.
type Print uint64

// Look takes the mark of a folder. Errors are part of it: what vanishes while it is looked at makes another mark.
func Look(dir string) Print {
	h := fnv.New64a()
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(h, "%s\x00%v\x00", path, err)
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			fmt.Fprintf(h, "%s\x00%v\x00", path, err)
			return nil
		}
		if fi.IsDir() { // its entries tell; its own time moves with them
			fmt.Fprintf(h, "%s\x00%o\x00", path, fi.Mode())
			return nil
		}
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			link, _ = os.Readlink(path)
		}
		fmt.Fprintf(h, "%s\x00%o %d %d\x00%s\x00", path, fi.Mode(), fi.Size(), fi.ModTime().UnixNano(), link)
		return nil
	})
	return Print(h.Sum64())
}

// AwaitChange waits until the folder's mark is another one than was; false: it is not within the time.
func AwaitChange(ctx context.Context, dir string, was Print, within time.Duration) bool {
	end := time.NewTimer(within)
	defer end.Stop()
	for {
		if Look(dir) != was {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-end.C:
			return false
		case <-time.After(pollEvery):
		}
	}
}

// Take reads a folder once it is quiet. cacheDir, if set, remembers hashes between saves. fs.ErrNotExist: there is no such
// folder. ErrBusy: it was never quiet until ctx ended.
func Take(ctx context.Context, dir, cacheDir string) (*filesync.Tree, error) {
	o := filesync.ScanOptions{NoIgnore: true}
	if cacheDir != "" {
		o.Cache = filesync.OpenHashCache(filesync.CacheFile(cacheDir, dir))
	}
	began := time.Now()
	for {
		if _, err := os.Stat(dir); err != nil {
			return nil, err
		}
		pause := quiet
		if time.Since(began) > patience {
			pause = quietLeast
		}
		before := Look(dir)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w for %s: have the program write beside it and rename when done", dir, ErrBusy, time.Since(began).Round(100*time.Millisecond))
		case <-time.After(pause):
		}
		if Look(dir) != before {
			continue
		}
		tree, err := filesync.Scan(ctx, dir, o)
		switch {
		case errors.Is(err, filesync.ErrChanged), err != nil && ctx.Err() != nil:
			continue
		case err != nil:
			return nil, err
		case Look(dir) != before:
			continue
		}
		if o.Cache != nil {
			_ = o.Cache.Save() // it only speeds the next save up
		}
		return tree, nil
	}
}
