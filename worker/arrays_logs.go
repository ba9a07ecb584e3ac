package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/worker/httpapi"
)

// ElementLog gives what was kept of one element's output in a batch.
func (b *backend) ElementLog(_ context.Context, jobID, batch int64, element int) (logs []httpapi.StoredLog, kept bool, err error) {
	dir := activities.BatchLogs(b.home, jobID)
	indexes, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%d-*.index", batch)))
	if err != nil {
		return nil, false, err
	}
	for _, index := range indexes {
		_, rank, _ := strings.Cut(strings.TrimSuffix(filepath.Base(index), ".index"), "-")
		node, err := strconv.Atoi(rank)
		if err != nil {
			continue
		}
		path, _ := activities.BatchLogFile(dir, batch, node)
		pieces, err := readIndex(index, element)
		if err != nil {
			return nil, false, err
		}
		kept = true
		for _, p := range pieces {
			logs = append(logs, httpapi.StoredLog{Rank: p.Rank, Phase: p.Phase, Open: func() (io.ReadSeekCloser, error) {
				f, err := os.Open(path)
				if err != nil {
					return nil, err
				}
				return filePart{io.NewSectionReader(f, p.Offset, p.Len), f}, nil
			}})
		}
	}
	return logs, kept, nil
}

// filePart is a part of a file that is closed with it.
type filePart struct {
	*io.SectionReader
	io.Closer
}

// readIndex finds the pieces of one element.
func readIndex(path string, element int) (out []activities.LogPiece, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var p activities.LogPiece
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if p.Element == element {
			out = append(out, p)
		}
	}
	return out, lines.Err()
}
