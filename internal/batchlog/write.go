package batchlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"sync"
)

// ErrGap is in the chain of the error about bytes that would leave a gap before them, ErrWhole of the one about a log that grows no
// more.
var (
	ErrGap   = errors.New("bytes before these are missing")
	ErrWhole = errors.New("the log is whole")
)

// Output is some of what an element has printed on a node.
type Output struct {
	Element int
	Rank    int // of the job
	Phase   string
	Offset  int64 // in the raw log of this rank and phase
	Len     int64
}

// Writer adds to the log of a batch on one node. Several may be at it.
type Writer struct {
	dir string
	id  ID

	mu   *sync.Mutex // of all writers of the log
	at   map[output]int64
	read int64 // how far the index was read
}

// output is what grows by itself.
type output struct {
	element, rank int
	phase         string
}

var (
	locks [64]sync.Mutex
	seed  = maphash.MakeSeed()
)

// NewWriter makes a writer. The folder is made when there is something to write.
func NewWriter(dir string, id ID) *Writer {
	return &Writer{dir: dir, id: id, mu: &locks[maphash.String(seed, id.base(dir))%uint64(len(locks))], at: map[output]int64{}}
}

// load brings up to date what is known of the index, and opens it for more. The caller holds the lock, and closes it.
func (w *Writer) load() (*os.File, error) {
	if _, err := os.Stat(w.id.whole(w.dir)); err == nil {
		return nil, fmt.Errorf("batch %d on node %d: %w", w.id.Batch, w.id.Rank, ErrWhole)
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(w.id.growing(w.dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	pieces, next, err := readPieces(f, w.read)
	if err == nil {
		err = f.Truncate(next)
	}
	if err == nil {
		_, err = f.Seek(next, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	w.read = next
	for _, p := range pieces {
		w.at[output{p.Element, p.Rank, p.Phase}] += p.Len
	}
	return f, nil
}

// Have tells how many bytes are kept of each output of at least some length. It changes nothing.
func Have(dir string, id ID, least int64) (map[Output]int64, error) {
	pieces, _, _, err := Pieces(dir, id, 0)
	if err != nil {
		return nil, err
	}
	sum := map[Output]int64{}
	for _, p := range pieces {
		if p.Len > 0 {
			sum[Output{Element: p.Element, Rank: p.Rank, Phase: p.Phase}] += p.Len
		}
	}
	for o, n := range sum {
		if n < least {
			delete(sum, o)
		}
	}
	return sum, nil
}

// Append adds outputs, whose bytes stand in data one after the other. What is there already is passed over.
func (w *Writer) Append(outputs []Output, data io.Reader) (err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	index, err := w.load()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, index.Close()) }()
	log, err := os.OpenFile(w.id.Path(w.dir), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	end, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	var lines []byte
	added := map[output]int64{}
	var failed error
	for _, o := range outputs {
		key := output{o.Element, o.Rank, o.Phase}
		have := w.at[key] + added[key]
		if o.Offset > have {
			failed = fmt.Errorf("element %d: %w: %d bytes are kept, these begin at %d", o.Element, ErrGap, have, o.Offset)
			if _, err := io.CopyN(io.Discard, data, o.Len); err != nil {
				return err
			}
			continue
		}
		known := min(have-o.Offset, o.Len)
		if _, err := io.CopyN(io.Discard, data, known); err != nil {
			return err
		}
		if known == o.Len {
			continue
		}
		n, err := io.CopyN(log, data, o.Len-known)
		if err != nil {
			return err // the index knows nothing of it: what was written of it is never read
		}
		line, err := json.Marshal(Piece{Element: o.Element, Rank: o.Rank, Phase: o.Phase, Offset: end, Len: n})
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
		end += n
		added[key] += n
	}
	if len(lines) == 0 {
		return failed
	}
	// How far it is read is left as it was: what the next call finds in the index counts.
	if _, err := index.Write(lines); err != nil {
		return err
	}
	return failed
}

// Finish says that the log is whole, or why more could not be kept. Idempotent: the first word counts.
func (w *Writer) Finish(cut string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	index, err := w.load()
	if errors.Is(err, ErrWhole) {
		return nil
	}
	if err != nil {
		return err
	}
	if cut != "" {
		line, err := json.Marshal(Piece{Cut: cut})
		if err != nil {
			index.Close()
			return err
		}
		if _, err := index.Write(append(line, '\n')); err != nil {
			index.Close()
			return err
		}
	}
	log, err := os.OpenFile(w.id.Path(w.dir), os.O_WRONLY, 0)
	if err == nil {
		err = errors.Join(log.Sync(), log.Close())
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil // nothing was printed
	}
	if err = errors.Join(err, index.Close()); err != nil {
		return err
	}
	return os.Rename(w.id.growing(w.dir), w.id.whole(w.dir))
}
