package batchlog

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ID names the log of one batch on one node.
type ID struct {
	Batch int64
	Rank  int // of the node
}

func (id ID) base(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%d-%d", id.Batch, id.Rank))
}

// Path is where the bytes are.
func (id ID) Path(dir string) string { return id.base(dir) + ".log" }

func (id ID) whole(dir string) string   { return id.base(dir) + ".index" }
func (id ID) growing(dir string) string { return id.base(dir) + ".part" }

// Piece is where a part of the output of one element stands in the log of its batch. One with Cut has no bytes.
type Piece struct {
	Element int    `json:"i"`
	Rank    int    `json:"r"` // of the job
	Phase   string `json:"p"`
	Offset  int64  `json:"o"` // bytes
	Len     int64  `json:"n"`
	// Cut says that more may have been printed by any element of the batch, and why it could not be kept.
	Cut string `json:"cut,omitempty"`
}

// Listed is a log of a folder.
type Listed struct {
	ID
	Whole bool
}

// List gives the logs of a folder by batch and rank. A folder that is not there has none.
func List(dir string) ([]Listed, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[ID]bool{}
	for _, e := range entries {
		name, whole := strings.CutSuffix(e.Name(), ".index")
		if !whole {
			var part bool
			if name, part = strings.CutSuffix(e.Name(), ".part"); !part {
				continue
			}
		}
		b, r, ok := strings.Cut(name, "-")
		batch, err1 := strconv.ParseInt(b, 10, 64)
		rank, err2 := strconv.Atoi(r)
		if !ok || err1 != nil || err2 != nil {
			continue // an older version's temporary file
		}
		id := ID{batch, rank}
		found[id] = found[id] || whole
	}
	out := make([]Listed, 0, len(found))
	for id, whole := range found {
		out = append(out, Listed{id, whole})
	}
	slices.SortFunc(out, func(a, b Listed) int {
		return cmp.Or(cmp.Compare(a.Batch, b.Batch), cmp.Compare(a.Rank, b.Rank))
	})
	return out, nil
}

// Growing gives the logs of a batch that are not whole.
func Growing(dir string, batch int64) (out []ID, err error) {
	list, err := List(dir)
	for _, l := range list {
		if l.Batch == batch && !l.Whole {
			out = append(out, l.ID)
		}
	}
	return out, err
}

// IsWhole says that a log grows no more.
func IsWhole(dir string, id ID) bool {
	_, err := os.Stat(id.whole(dir))
	return err == nil
}

// Pieces reads the index of a log from a byte of it on. next is where it is to be read on; whole: no more will come. A log that is not
// there has none.
func Pieces(dir string, id ID, from int64) (pieces []Piece, next int64, whole bool, err error) {
	f, whole, err := openIndex(dir, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, from, false, nil
	}
	if err != nil {
		return nil, from, false, err
	}
	defer f.Close()
	pieces, next, err = readPieces(f, from)
	return pieces, next, whole, err
}

// openIndex opens the index; whether it is whole is found before it is read.
func openIndex(dir string, id ID) (f *os.File, whole bool, err error) {
	for range 2 { // it may get its last name in between
		if f, err = os.Open(id.whole(dir)); !errors.Is(err, fs.ErrNotExist) {
			return f, true, err
		}
		if f, err = os.Open(id.growing(dir)); !errors.Is(err, fs.ErrNotExist) {
			return f, false, err
		}
	}
	return nil, false, err
}

func readPieces(f io.ReadSeeker, from int64) (pieces []Piece, next int64, err error) {
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, from, err
	}
	r := bufio.NewReaderSize(f, 32<<10)
	for next = from; ; {
		line, err := r.ReadBytes('\n')
		if err == io.EOF { // what stands behind the last line end is being written
			return pieces, next, nil
		}
		if err != nil {
			return pieces, next, err
		}
		var p Piece
		if err := json.Unmarshal(bytes.TrimSpace(line), &p); err != nil {
			return pieces, next, fmt.Errorf("the index of a batch's log, at byte %d: %w", next, err)
		}
		pieces, next = append(pieces, p), next+int64(len(line))
	}
}

// Sections gives the pieces of a log's bytes as one stream.
func Sections(log io.ReaderAt, pieces []Piece) io.ReadSeeker {
	s := &sections{log: log, pieces: pieces}
	for _, p := range pieces {
		s.size += p.Len
	}
	return s
}

type sections struct {
	log      io.ReaderAt
	pieces   []Piece
	at, size int64
}

// Read fills the buffer, over several pieces.
func (s *sections) Read(b []byte) (n int, err error) {
	skipped := int64(0)
	for _, p := range s.pieces {
		if n == len(b) {
			return n, nil
		}
		if into := s.at - skipped; into < p.Len {
			k, err := s.log.ReadAt(b[n:n+int(min(int64(len(b)-n), p.Len-into))], p.Offset+into)
			n, s.at = n+k, s.at+int64(k)
			if err == io.EOF { // a crash took what the index tells of
				err = nil
			}
			if err == nil && n == 0 {
				err = io.EOF
			}
			if err != nil || into+int64(k) < p.Len {
				return n, err
			}
		}
		skipped += p.Len
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (s *sections) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return s.at, errors.New("seek before the beginning")
	}
	s.at = offset
	return offset, nil
}
