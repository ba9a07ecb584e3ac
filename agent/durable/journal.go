package durable

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// ErrFull says that the disk has no room for a batch. Nothing of it was kept.
var ErrFull = errors.New("no space left on the disk that holds the agent's folder")

// Record is one entry of a batch: a value put under a key, or the key's removal if Value is nil.
type Record struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"`
}

// Batch collects records that belong together.
type Batch struct {
	recs []Record
	err  error
}

// Put sets a key.
func (b *Batch) Put(key string, v any) {
	raw, err := json.Marshal(v)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("record %s: %w", key, err)
	}
	b.recs = append(b.recs, Record{key, raw})
}

// Delete removes a key.
func (b *Batch) Delete(key string) { b.recs = append(b.recs, Record{Key: key}) }

// Len is the number of records.
func (b *Batch) Len() int { return len(b.recs) }

// Journal is an open journal. Append, Compact and Sync may be called concurrently.
type Journal struct {
	path, ballast string
	mu            sync.Mutex
	f             *os.File
	size          int64 // of the intact part, in bytes
	base          int64 // size after the last compaction
	written       int64 // count of batches
	broken        error // the file's tail could not be mended: nothing is written any more

	syncMu sync.Mutex
	synced int64
}

// ballastSize is kept aside, in bytes, so that the end of running jobs can be recorded on a full disk.
const ballastSize = 256 << 10

// minCompact is the size in bytes below which compacting is not worth while.
const minCompact = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Open replays the journal at path, made if absent (mode 0600), through apply. A last line that was cut is dropped; a
// broken line within is skipped and counted, since every line stands alone.
func Open(path string, apply func(Record) error) (j *Journal, skipped int, err error) {
	os.Remove(path + ".new") // a compaction that was cut
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	end, skipped, err := replay(f, apply)
	if err != nil {
		return nil, skipped, err
	}
	if err := f.Truncate(end); err != nil {
		return nil, skipped, fmt.Errorf("journal %s: %w", path, err)
	}
	if _, err := f.Seek(end, io.SeekStart); err != nil {
		return nil, skipped, err
	}
	j = &Journal{path: path, ballast: path + ".ballast", f: f, size: end, base: end}
	j.fillBallast()
	return j, skipped, nil
}

func replay(f *os.File, apply func(Record) error) (end int64, skipped int, err error) {
	r := bufio.NewReaderSize(f, 64<<10)
	var pos int64
	pending := 0 // broken lines since the last good one: at the end they are the cut tail
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return end, skipped, nil
		}
		if err != nil {
			return end, skipped, err
		}
		pos += int64(len(line))
		recs, ok := parse(line)
		if !ok {
			pending++
			continue
		}
		skipped += pending
		pending = 0
		end = pos
		for _, rec := range recs {
			if err := apply(rec); err != nil {
				return end, skipped, fmt.Errorf("journal record %s: %w", rec.Key, err)
			}
		}
	}
}

func parse(line []byte) ([]Record, bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	if len(line) < 10 || line[8] != ' ' {
		return nil, false
	}
	if fmt.Sprintf("%08x", crc32.Checksum(line[9:], castagnoli)) != string(line[:8]) {
		return nil, false
	}
	var recs []Record
	return recs, json.Unmarshal(line[9:], &recs) == nil
}

func encode(recs []Record) ([]byte, error) {
	body, err := json.Marshal(recs)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(body)+10)
	out = fmt.Appendf(out, "%08x ", crc32.Checksum(body, castagnoli))
	return append(append(out, body...), '\n'), nil
}

// Append writes a batch to the file; it survives the end of this process, and after Sync also that of the machine.
// With last set the reserve for a full disk may be used. ErrFull (wrapped) means that nothing was kept.
func (j *Journal) Append(b *Batch, last bool) error {
	if b.err != nil {
		return b.err
	}
	if len(b.recs) == 0 {
		return nil
	}
	line, err := encode(b.recs)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	err = j.write(line)
	if err != nil && last && errors.Is(err, ErrFull) {
		os.Remove(j.ballast)
		err = j.write(line)
	}
	return err
}

func (j *Journal) write(line []byte) error {
	if j.broken != nil {
		return j.broken
	}
	if _, err := j.f.Write(line); err != nil {
		// Take back what was written of it.
		if terr := j.f.Truncate(j.size); terr != nil {
			j.broken = fmt.Errorf("journal %s cannot be mended after a failed write: %w", j.path, terr)
		} else if _, serr := j.f.Seek(j.size, io.SeekStart); serr != nil {
			j.broken = serr
		}
		return full(err)
	}
	j.size += int64(len(line))
	j.written++
	return nil
}

func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%v)", ErrFull, err)
	}
	return err
}

// Sync makes what was appended before survive a crash of the machine. Concurrent calls share one flush.
func (j *Journal) Sync() error {
	j.mu.Lock()
	want := j.written
	j.mu.Unlock()
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced >= want {
		return nil
	}
	j.mu.Lock()
	now, f := j.written, j.f
	j.mu.Unlock()
	if err := f.Sync(); err != nil {
		return full(err)
	}
	j.synced = now
	return nil
}

// Due says that compacting would free much.
func (j *Journal) Due() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size > minCompact && j.size > 3*j.base
}

// Compact replaces the journal by the records that snapshot puts. The caller keeps others from appending meanwhile.
// After an error the old journal goes on.
func (j *Journal) Compact(snapshot func(put func(key string, v any) error) error) error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	f, err := os.OpenFile(j.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return full(err)
	}
	var size int64
	w := bufio.NewWriterSize(f, 64<<10)
	err = snapshot(func(key string, v any) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		line, err := encode([]Record{{key, raw}})
		if err != nil {
			return err
		}
		size += int64(len(line))
		_, err = w.Write(line)
		return err
	})
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(j.path + ".new")
		return full(err)
	}
	SyncDir(filepath.Dir(j.path))
	j.f.Close()
	j.f, j.size, j.base, j.broken = f, size, size, nil
	j.written++
	j.synced = j.written
	j.fillBallast()
	return nil
}

// fillBallast makes the reserve if there is room for it.
func (j *Journal) fillBallast() {
	if fi, err := os.Stat(j.ballast); err == nil && fi.Size() >= ballastSize {
		return
	}
	f, err := os.OpenFile(j.ballast, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("ballast\n"), ballastSize/8)); err != nil {
		os.Remove(j.ballast)
	}
}

// Close flushes and closes the journal.
func (j *Journal) Close() error {
	err := j.Sync()
	return errors.Join(err, j.f.Close())
}
