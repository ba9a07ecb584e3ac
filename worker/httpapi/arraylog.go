package httpapi

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/batchlog"
	"github.com/skyloom/skyloom/internal/store"
)

const (
	// indexesHeld bounds the batches whose indexes are held while a log is read by element.
	indexesHeld = 64
	// rowsHeld is how many elements are read from the store at a time.
	rowsHeld = 500
	// arrayLook is how often the kept output of an array is looked at while it is followed, and arrayPause the least time between.
	arrayLook  = time.Second
	arrayPause = 300 * time.Millisecond
)

// elementRange refuses a range of elements that there is not.
func (s *Server) elementRange(rows []api.ManagedJob, in *managedLogQuery) error {
	if in.First < 0 && in.Last < 0 {
		return nil
	}
	a := rows[0].Array
	switch {
	case a == nil:
		return failure(api.ErrInvalid, "Its state: sky jobs queue", "managed job %d is no array and has no elements", in.ID)
	case in.Element >= 0:
		return failure(api.ErrInvalid, "", "name one element or a range of them")
	case in.Last >= 0 && in.Last < in.First:
		return failure(api.ErrInvalid, "", "%d-%d is no range of elements", in.First, in.Last)
	case in.First >= a.Count:
		return failure(api.ErrNotFound, "", "managed job %d has %d elements, from 0 to %d", in.ID, a.Count, a.Count-1)
	}
	return nil
}

// arrayLog sends what the elements of an array have printed, as far as it is kept: nodes push it every few seconds, and all of it is
// there once an element's batch is settled.
type arrayLog struct {
	s      *Server
	in     *managedLogQuery
	out    *frameWriter
	dir    string
	first  int
	last   int
	ranged bool // not all elements
	setups map[int]bool
	buf    []byte
}

// sendArray sends the log of an array: followed as it comes, else by element.
func (s *Server) sendArray(ctx context.Context, in *managedLogQuery, out *frameWriter, row api.ManagedJob, cursor map[int]*taskPlace, told <-chan struct{}) error {
	b, ok := s.be().(ElementLogs)
	if !ok {
		return failure(api.ErrNotSupported, "", "this server keeps no logs of arrays")
	}
	l := &arrayLog{s: s, in: in, out: out, dir: b.BatchLogs(in.ID), last: row.Array.Count - 1, ranged: in.First >= 0 || in.Last >= 0, setups: map[int]bool{}, buf: make([]byte, 64<<10)}
	out.gather()
	if l.ranged {
		l.first = max(in.First, 0)
		if in.Last >= 0 {
			l.last = min(l.last, in.Last)
		}
	}
	if err := l.setup(ctx, b); err != nil {
		return err
	}
	var err error
	if in.Follow {
		err = l.followed(ctx, b, told)
	} else {
		err = l.byElement(ctx, cursor)
	}
	if err != nil {
		return err
	}
	end, err := l.end(ctx)
	if err != nil {
		return err
	}
	return out.frame(end, nil)
}

// setup sends the output of setups that failed, or whose cluster was lost: that of others is not kept.
func (l *arrayLog) setup(ctx context.Context, b ElementLogs) error {
	if l.ranged {
		return nil
	}
	attempts, err := b.StoredAttempts(ctx, l.in.ID, 0)
	if err != nil {
		return err
	}
	for _, n := range attempts {
		if l.setups[n] {
			continue
		}
		logs, err := l.s.be().StoredLog(ctx, l.in.ID, 0, n)
		if err != nil {
			return err
		}
		again := l.in.Cursor != "" || l.in.Batches != "" // the reader has them
		for _, one := range logs {
			l.setups[n] = true
			if one.Open == nil || again {
				continue
			}
			if err := l.file(ctx, one, 0, api.LogFrame{Rank: one.Rank, Node: api.NodeName(one.Rank), Phase: one.Phase, Attempt: n}); err != nil {
				return err
			}
		}
	}
	return nil
}

// file sends a log from an offset on; f is what its frames have in common.
func (l *arrayLog) file(ctx context.Context, log StoredLog, from int64, f api.LogFrame) error {
	r, err := log.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if l.in.Tail > 0 && from == 0 {
		if err := seekTail(r, l.in.Tail); err != nil {
			return err
		}
		if from, err = r.Seek(0, io.SeekCurrent); err != nil {
			return err
		}
	} else if _, err := r.Seek(from, io.SeekStart); err != nil {
		return err
	}
	for ctx.Err() == nil {
		n, err := r.Read(l.buf)
		if n > 0 {
			f.Offset = from
			if err := l.out.frame(f, l.buf[:n]); err != nil {
				return err
			}
			from += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// byElement sends the output by rising element, of each all its attempts; with a tail only the last lines of its latest.
func (l *arrayLog) byElement(ctx context.Context, cursor map[int]*taskPlace) error {
	from, place := l.first, (*taskPlace)(nil)
	for e, p := range cursor {
		if e >= from && e <= l.last {
			from, place = e, p
		}
	}
	x := &batchIndexes{dir: l.dir, only: func(i int) bool { return i >= l.first && i <= l.last }}
	defer x.close()
	for from <= l.last {
		var rows []store.ElementRow
		if err := l.s.o.Store.EachElement(ctx, l.in.ID, from, l.last, func(r store.ElementRow) bool {
			rows = append(rows, r)
			return len(rows) < rowsHeld
		}); err != nil {
			return err
		}
		for _, r := range rows {
			if err := l.one(ctx, x, r, place); err != nil {
				return err
			}
			place = nil
		}
		if len(rows) < rowsHeld {
			return nil
		}
		from = rows[len(rows)-1].Index + 1
	}
	return nil
}

// one sends the output of an element, from a place in it on.
func (l *arrayLog) one(ctx context.Context, x *batchIndexes, r store.ElementRow, place *taskPlace) error {
	batches := batchesOf(r)
	begin := 1
	if place != nil {
		begin = place.attempt
	} else if l.in.Tail > 0 {
		begin = len(batches)
	}
	for attempt := max(begin, 1); attempt <= len(batches); attempt++ {
		b, err := x.batch(batches[attempt-1])
		if err != nil {
			return err
		}
		for _, log := range x.logs(b, r.Index) {
			if log.Cut != "" {
				continue
			}
			var from int64
			if place != nil && attempt == place.attempt {
				from = place.at[log.Rank][log.Phase]
			}
			f := api.LogFrame{Element: &r.Index, Rank: log.Rank, Node: api.NodeName(log.Rank), Phase: log.Phase, Attempt: attempt}
			if err := l.file(ctx, log, from, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// batchesOf lists the batches of an element's attempts, by attempt.
func batchesOf(r store.ElementRow) []int64 {
	return append(append([]int64(nil), r.Past...), r.Batch)
}

// end tells how what was shown stands: the array, or the elements that were asked for.
func (l *arrayLog) end(ctx context.Context) (api.LogFrame, error) {
	end := api.LogFrame{End: true, JobID: l.in.ID, JobName: l.out.first.JobName}
	rows, err := l.s.managedJob(ctx, l.in.ID)
	if err != nil {
		return end, err
	}
	end.JobName, end.Status, end.Reason = rows[0].Name, api.JobStatus(rows[0].Status), rows[0].FailureReason
	if end.Reason == "" {
		end.Reason = rows[0].Details
	}
	if !l.ranged {
		return end, nil
	}
	counts := map[api.ManagedStatus]int{}
	left := l.last - l.first + 1
	if err := l.s.o.Store.EachElement(ctx, l.in.ID, l.first, l.last, func(r store.ElementRow) bool {
		counts[store.NeverBegan(rows[0].Status, r.Status)]++
		left--
		return true
	}); err != nil {
		return end, err
	}
	counts[store.NeverBegan(rows[0].Status, api.ManagedPending)] += left
	end.Reason = ""
	for _, st := range []api.ManagedStatus{api.ManagedRunning, api.ManagedPending, api.ManagedFailed, api.ManagedCancelled, api.ManagedSucceeded} {
		n := counts[st]
		if n == 0 {
			continue
		}
		end.Status = api.JobStatus(st)
		if all := l.last - l.first + 1; n < all {
			end.Reason = fmt.Sprintf("%d of %d elements", n, all)
		}
		break
	}
	return end, nil
}

// batchIndexes holds the indexes of the batches that were asked for last.
type batchIndexes struct {
	dir   string
	only  func(element int) bool
	held  map[int64]*batchIndex
	order []int64
	// file is the log that was opened last.
	file *os.File
	id   batchlog.ID
}

// open opens a batch's log, until another is opened.
func (x *batchIndexes) open(id batchlog.ID) (*os.File, error) {
	if x.file != nil && x.id == id {
		return x.file, nil
	}
	x.close()
	var err error
	x.file, err = os.Open(id.Path(x.dir))
	x.id = id
	return x.file, err
}

func (x *batchIndexes) close() {
	if x.file != nil {
		x.file.Close()
		x.file = nil
	}
}

// section is a part of a file that stays open for the next one.
type section struct{ io.ReadSeeker }

func (section) Close() error { return nil }

// batchIndex is where the output of the elements of a batch stands, on all nodes.
type batchIndex struct {
	pieces map[int][]nodePiece
	cuts   []StoredLog
	whole  bool // on every node: no more will come
}

type nodePiece struct {
	id batchlog.ID
	batchlog.Piece
}

func (x *batchIndexes) batch(n int64) (*batchIndex, error) {
	if b := x.held[n]; b != nil {
		return b, nil
	}
	b := &batchIndex{pieces: map[int][]nodePiece{}}
	for rank := 0; ; rank++ {
		id := batchlog.ID{Batch: n, Rank: rank}
		pieces, next, whole, err := batchlog.Pieces(x.dir, id, 0)
		if err != nil {
			return nil, err
		}
		if there := whole || next > 0; !there && rank > 0 {
			break
		}
		b.whole = whole && (rank == 0 || b.whole)
		for _, p := range pieces {
			if p.Cut != "" {
				b.cuts = append(b.cuts, StoredLog{Rank: rank, Cut: p.Cut})
			} else if x.only(p.Element) {
				b.pieces[p.Element] = append(b.pieces[p.Element], nodePiece{id, p})
			}
		}
	}
	if x.held == nil {
		x.held = map[int64]*batchIndex{}
	}
	if len(x.order) >= indexesHeld {
		delete(x.held, x.order[0])
		x.order = x.order[1:]
	}
	x.held[n], x.order = b, append(x.order, n)
	return b, nil
}

// logs gives the output of an element by rank and phase. What is opened holds until the next is.
func (x *batchIndexes) logs(b *batchIndex, element int) []StoredLog {
	type key struct {
		id    batchlog.ID
		rank  int
		phase string
	}
	byKey := map[key][]batchlog.Piece{}
	var keys []key
	for _, p := range b.pieces[element] {
		k := key{p.id, p.Rank, p.Phase}
		if byKey[k] == nil {
			keys = append(keys, k)
		}
		byKey[k] = append(byKey[k], p.Piece)
	}
	sort.SliceStable(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		return a.rank < b.rank || a.rank == b.rank && phases[a.phase] < phases[b.phase]
	})
	var out []StoredLog
	for _, k := range keys {
		out = append(out, StoredLog{Rank: k.rank, Phase: k.phase, Open: func() (io.ReadSeekCloser, error) {
			f, err := x.open(k.id)
			if err != nil {
				return nil, err
			}
			return section{batchlog.Sections(f, byKey[k])}, nil
		}})
	}
	return append(out, b.cuts...)
}
