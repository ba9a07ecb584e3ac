package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
	"github.com/skyloom/skyloom/internal/batchlog"
	"github.com/skyloom/skyloom/internal/store"
)

// batchPlace is how far the logs of an array's batches were read by one who follows them.
type batchPlace struct {
	done map[int]arrays.Set // by node: batches that were read to their end
	at   map[batchlog.ID]int64
}

// parseBatchPlace reads "NODE:BATCHES;BATCH.NODE@OFFSET;…".
func parseBatchPlace(text string) (batchPlace, error) {
	p := batchPlace{done: map[int]arrays.Set{}, at: map[batchlog.ID]int64{}}
	if text == "" {
		return p, nil
	}
	for part := range strings.SplitSeq(text, ";") {
		var err error
		if node, list, ok := strings.Cut(part, ":"); ok {
			var n int
			if n, err = strconv.Atoi(node); err == nil {
				p.done[n], err = arrays.Parse(list)
			}
		} else {
			var id batchlog.ID
			var at int64
			if _, err = fmt.Sscanf(part, "%d.%d@%d", &id.Batch, &id.Rank, &at); err == nil {
				p.at[id] = at
			}
		}
		if err != nil {
			return p, failure(api.ErrInvalid, "It reads NODE:BATCHES;BATCH.NODE@OFFSET such as 0:1-7,9;8.0@4096", "the place %q is wrong", shorten(part))
		}
	}
	return p, nil
}

// followedLog is a batch's log on one node that grows.
type followedLog struct {
	read     int64 // of its index
	at       int64 // bytes of the log that the reader has
	attempts map[int]int
}

// arrayFollow is the following of an array.
type arrayFollow struct {
	*arrayLog
	place  batchPlace
	open   map[batchlog.ID]*followedLog
	done   map[batchlog.ID]bool
	ended  int // elements before this one have ended, and are done with
	listed time.Time
	list   []batchlog.Listed
}

// followed sends what is kept of the array's output, batch after batch, and what comes, until the array or all elements asked for have
// ended. With a tail it begins with the last lines of those under way.
func (l *arrayLog) followed(ctx context.Context, b ElementLogs, told <-chan struct{}) error {
	place, err := parseBatchPlace(l.in.Batches)
	if err != nil {
		return err
	}
	f := &arrayFollow{arrayLog: l, place: place, open: map[batchlog.ID]*followedLog{}, done: map[batchlog.ID]bool{}, ended: l.first}
	if l.in.Tail > 0 && l.in.Batches == "" {
		if err := f.tails(ctx); err != nil {
			return err
		}
	}
	l.in.Tail = 0 // what comes is sent in full
	for {
		// How they stand is asked before the logs are read: what was kept before an end is sent.
		rows, err := l.s.managedJob(ctx, l.in.ID)
		if err != nil {
			return err
		}
		over := len(rows) > 0 && rows[0].Status.Terminal()
		if !over && l.ranged {
			if over, err = f.over(ctx); err != nil {
				return err
			}
		}
		if err := f.look(ctx); err != nil {
			return err
		}
		if over {
			return l.setup(ctx, b)
		}
		if err := f.out.flush(); err != nil {
			return err
		}
		began := time.Now()
		if err := l.s.heard(ctx, told, arrayLook); err != nil {
			return err
		}
		if err := l.s.heard(ctx, nil, arrayPause-time.Since(began)); err != nil {
			return err
		}
	}
}

// over says that all elements asked for have ended, and that their output is whole.
func (f *arrayFollow) over(ctx context.Context) (bool, error) {
	next := f.ended
	err := f.s.o.Store.EachElement(ctx, f.in.ID, f.ended, f.last, func(r store.ElementRow) bool {
		if r.Index != next || !r.Status.Terminal() || !batchlog.IsWhole(f.dir, batchlog.ID{Batch: r.Batch}) {
			return false
		}
		next++
		return true
	})
	f.ended = next
	return next > f.last, err
}

// logs lists the kept logs that may have something new, by batch. The folder is read only after it has changed.
func (f *arrayFollow) logs() ([]batchlog.Listed, error) {
	fi, err := os.Stat(f.dir)
	if err != nil {
		if os.IsNotExist(err) {
			err = nil
		}
		return nil, err
	}
	// A change within the clock's grain may have been overlooked.
	if !fi.ModTime().Equal(f.listed) || time.Since(f.listed) < 2*time.Second {
		if f.list, err = batchlog.List(f.dir); err != nil {
			return nil, err
		}
		f.listed = fi.ModTime()
		f.list = slices.DeleteFunc(f.list, func(l batchlog.Listed) bool { return f.done[l.ID] || f.place.done[l.Rank].Has(int(l.Batch)) })
	}
	return f.list, nil
}

// look sends what is new.
func (f *arrayFollow) look(ctx context.Context) error {
	list, err := f.logs()
	if err != nil {
		return err
	}
	for _, l := range list {
		if f.done[l.ID] {
			continue
		}
		o := f.open[l.ID]
		if o == nil {
			o = &followedLog{at: f.place.at[l.ID], attempts: map[int]int{}}
			f.open[l.ID] = o
		}
		pieces, next, whole, err := batchlog.Pieces(f.dir, l.ID, o.read)
		if err != nil {
			return err
		}
		if err := f.send(ctx, l.ID, o, pieces); err != nil {
			return err
		}
		o.read = next
		if whole {
			if err := f.whole(l.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// whole says that nothing more comes of a log.
func (f *arrayFollow) whole(id batchlog.ID) error {
	delete(f.open, id)
	f.done[id] = true
	return f.out.frame(api.LogFrame{Batch: id.Batch, BatchNode: id.Rank, BatchDone: true}, nil)
}

// send sends pieces of a log, as far as the reader has not got them.
func (f *arrayFollow) send(ctx context.Context, id batchlog.ID, o *followedLog, pieces []batchlog.Piece) error {
	pieces = slices.DeleteFunc(pieces, func(p batchlog.Piece) bool {
		return p.Cut != "" || p.Element < f.first || p.Element > f.last || p.Offset+p.Len <= o.at
	})
	if len(pieces) == 0 {
		return nil
	}
	if err := f.attemptsOf(ctx, id, o, pieces); err != nil {
		return err
	}
	file, err := os.Open(id.Path(f.dir))
	if err != nil {
		return err
	}
	defer file.Close()
	for _, p := range pieces {
		for from, end := max(p.Offset, o.at), p.Offset+p.Len; from < end; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := file.ReadAt(f.buf[:min(end-from, int64(len(f.buf)))], from)
			if n == 0 {
				if err == io.EOF {
					break // a crash took what the index tells of
				}
				return err
			}
			fr := api.LogFrame{Element: &p.Element, Attempt: o.attempts[p.Element], Rank: p.Rank, Node: api.NodeName(p.Rank), Phase: p.Phase, Batch: id.Batch, BatchNode: id.Rank, BatchOffset: from}
			if err := f.out.frame(fr, f.buf[:n]); err != nil {
				return err
			}
			from += int64(n)
			o.at = from
		}
	}
	return nil
}

// attemptsOf finds which attempts of their elements pieces are of. The row of one that has just begun may not be written yet: it is the
// one after those that are known.
func (f *arrayFollow) attemptsOf(ctx context.Context, id batchlog.ID, o *followedLog, pieces []batchlog.Piece) error {
	missing := map[int]bool{}
	for _, p := range pieces {
		if o.attempts[p.Element] == 0 {
			missing[p.Element] = true
		}
	}
	var list []int
	for e := range missing {
		list, o.attempts[e] = append(list, e), 1
	}
	for _, span := range arrays.Of(list...) {
		err := f.s.o.Store.EachElement(ctx, f.in.ID, span.From, span.To, func(r store.ElementRow) bool {
			batches := batchesOf(r)
			if n := slices.Index(batches, id.Batch); n >= 0 {
				o.attempts[r.Index] = n + 1
			} else if r.Batch > 0 && r.Batch < id.Batch {
				o.attempts[r.Index] = len(batches) + 1
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tails sends the last lines of the elements under way, and passes over what was before.
func (f *arrayFollow) tails(ctx context.Context) error {
	list, err := batchlog.List(f.dir)
	if err != nil {
		return err
	}
	for _, l := range list {
		if l.Whole {
			if err := f.whole(l.ID); err != nil {
				return err
			}
			continue
		}
		pieces, next, _, err := batchlog.Pieces(f.dir, l.ID, 0)
		if err != nil {
			return err
		}
		o := &followedLog{read: next, attempts: map[int]int{}}
		f.open[l.ID] = o
		b, x := &batchIndex{pieces: map[int][]nodePiece{}}, &batchIndexes{dir: f.dir}
		for _, p := range pieces {
			o.at = max(o.at, p.Offset+p.Len)
			if p.Element >= f.first && p.Element <= f.last && p.Cut == "" {
				b.pieces[p.Element] = append(b.pieces[p.Element], nodePiece{l.ID, p})
			}
		}
		if err := f.attemptsOf(ctx, l.ID, o, pieces); err != nil {
			return err
		}
		elements := make([]int, 0, len(b.pieces))
		for e := range b.pieces {
			elements = append(elements, e)
		}
		slices.SortFunc(elements, cmp.Compare[int])
		for _, e := range elements {
			row, err := f.s.o.Store.Element(ctx, f.in.ID, e)
			if err != nil {
				return err
			}
			if row == nil || row.Batch != l.Batch || row.Status.Terminal() {
				continue
			}
			for _, log := range x.logs(b, e) {
				fr := api.LogFrame{Element: &e, Attempt: o.attempts[e], Rank: log.Rank, Node: api.NodeName(log.Rank), Phase: log.Phase}
				if err := f.file(ctx, log, 0, fr); err != nil {
					x.close()
					return err
				}
			}
		}
		x.close()
		if err := f.out.frame(api.LogFrame{Batch: l.Batch, BatchNode: l.Rank, BatchOffset: o.at}, nil); err != nil {
			return err
		}
	}
	return nil
}
