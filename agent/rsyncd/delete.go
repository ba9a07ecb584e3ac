package rsyncd

import (
	"os"
	"path/filepath"
)

// deleteExtra deletes what is here and not in the list, in the folders that belong to the transfer.
func (r *receiver) deleteExtra() {
	if r.ioError != 0 && !r.o.ignoreErrors {
		r.out.message(msgInfo, []byte("IO error encountered -- skipping file deletion\n"))
		return
	}
	if r.as != "" {
		return
	}
	wanted := make(map[string]bool, len(r.list))
	for _, e := range r.list {
		if !e.dropped {
			wanted[e.name] = true
		}
	}
	left := r.o.maxDelete
	for _, e := range r.list {
		if !e.dir() || !e.content || e.dropped {
			continue
		}
		if now, err := look(r.path(e)); err != nil || now == nil || !now.dir() {
			continue
		}
		names, err := dirNames(r.path(e))
		if err != nil {
			r.complain("readdir", r.path(e), err)
			continue
		}
		for _, n := range names {
			name := n
			if e.name != "." {
				name = e.name + "/" + n
			}
			if !wanted[name] {
				r.deleteTree(name, filepath.Join(r.path(e), n), &left)
			}
		}
	}
	if r.ioError&ioErrDelLimit != 0 {
		r.out.message(msgInfo, []byte("Deletions stopped due to --max-delete limit\n"))
	}
}

func dirNames(path string) ([]string, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// deleteTree deletes a name and what is below it, except for what the rules protect. It says if all is gone.
func (r *receiver) deleteTree(name, path string, left *int) bool {
	old, err := look(path)
	if err != nil || old == nil {
		return err == nil
	}
	if r.filters.excludes(name, old.dir(), false) {
		return false
	}
	if old.dir() {
		names, err := dirNames(path)
		if err != nil {
			r.complain("readdir", path, err)
			return false
		}
		empty := true
		for _, n := range names {
			empty = r.deleteTree(name+"/"+n, filepath.Join(path, n), left) && empty
		}
		if !empty {
			return false
		}
	}
	if *left == 0 {
		r.ioError |= ioErrDelLimit
		return false
	}
	if !r.o.dryRun {
		if err := os.Remove(path); err != nil {
			r.complain("delete", path, err)
			return false
		}
	}
	if *left > 0 {
		*left--
	}
	told := name
	if old.dir() {
		told += "\x00"
	}
	r.out.message(msgDeleted, []byte(told))
	return true
}
