package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/filesync"
)

// spare is what is left free on a node's disk, in bytes, so that its jobs can still write their logs.
const spare = 16 << 20

// roomFor says before anything is sent that a sync does not fit. What the spool has to take is counted, and what the
// destination needs besides: small files are copied there, and big ones move if both are on one disk. What is placed
// needs room at the destination only.
func (a *Agent) roomFor(m *filesync.Manifest, need filesync.Need, lacks []string, dst string, place bool) error {
	if len(need.Missing) == 0 {
		return nil
	}
	sizes := m.Sizes()
	var spool, copied int64
	for _, h := range lacks {
		spool += sizes[h]
	}
	for _, h := range need.Missing {
		if sizes[h] < filesync.MoveFrom {
			copied += sizes[h]
		}
	}
	at, ok := diskOf(a.path("spool"))
	if !ok {
		return nil
	}
	to, ok := diskOf(dst)
	if !ok {
		return nil
	}
	if place && need.Fresh() {
		return fitPlaced(m, at, to)
	}
	if at.dev == to.dev {
		return at.fits(spool + copied)
	}
	if err := to.fits(need.Bytes); err != nil {
		return err
	}
	return at.fits(spool)
}

// fitPlaced is for content that goes to its destination at once; what several files have waits in the spool.
func fitPlaced(m *filesync.Manifest, at, to disk) error {
	uses := make(map[string]int, len(m.Entries))
	var placed, spooled int64
	for i := range m.Entries {
		e := &m.Entries[i]
		placed += e.Size
		if uses[e.Hash]++; uses[e.Hash] == 2 {
			spooled += e.Size
		}
	}
	if at.dev == to.dev {
		return to.fits(placed + spooled)
	}
	if err := to.fits(placed); err != nil {
		return err
	}
	return at.fits(spooled)
}

type disk struct {
	path string
	dev  uint64
	free int64 // bytes that this user may still write
}

// diskOf looks at the disk on which path is, or would be made.
func diskOf(path string) (disk, bool) {
	for {
		var s unix.Statfs_t
		var fi unix.Stat_t
		if unix.Statfs(path, &s) == nil && unix.Stat(path, &fi) == nil {
			if s.Blocks == 0 {
				return disk{}, false // it does not tell
			}
			free := s.Bavail
			if os.Geteuid() == 0 {
				free = s.Bfree
			}
			return disk{path, uint64(fi.Dev), int64(free) * int64(s.Bsize)}, true
		}
		up := filepath.Dir(path)
		if up == path {
			return disk{}, false
		}
		path = up
	}
}

func (d disk) fits(bytes int64) error {
	if bytes+spare <= d.free {
		return nil
	}
	return &agentapi.Error{Kind: agentapi.KindDiskFull, Detail: fmt.Sprintf("the files need %d MB on the disk of %s, and %d MB are free there", (bytes+spare)>>20, d.path, d.free>>20)}
}
