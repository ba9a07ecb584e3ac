package task

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// FS is the part of the user's machine that a task refers to. Paths given to ReadFile and Stat come from Abs.
type FS interface {
	// ReadFile returns the content, of which the first byte above the size limit of a task file may be the last one.
	ReadFile(path string) ([]byte, error)
	Stat(path string) (fs.FileInfo, error)
	// ReadDir is used only to see whether a folder can be listed; one entry is enough.
	ReadDir(path string) error
	// Abs expands ~ and makes a path absolute relative to the caller's folder.
	Abs(path string) (string, error)
}

// OSFS is the real file system seen from a folder.
type OSFS struct{ Dir, Home string }

// NewOSFS is the real file system, with relative paths from dir and ~ for home.
func NewOSFS(dir, home string) FS { return OSFS{dir, home} }

// ReadFile reads up to one byte above the size limit of a task file.
func (o OSFS) ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && info.Mode()&fs.ModeNamedPipe == 0 && info.Mode()&fs.ModeCharDevice == 0 {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is not a file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, yamldoc.MaxBytes+1))
}

// Stat follows links.
func (o OSFS) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }

// ReadDir tells whether the folder can be listed.
func (o OSFS) ReadDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Readdirnames(1); errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Abs expands ~ and joins relative paths to Dir.
func (o OSFS) Abs(path string) (string, error) {
	if path == "~" || strings.HasPrefix(path, "~/") || strings.HasPrefix(path, `~\`) && filepath.Separator == '\\' {
		if o.Home == "" {
			return "", errors.New("the home folder is not known; set HOME or write the whole path")
		}
		path = filepath.Join(o.Home, strings.TrimPrefix(path, "~"))
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(o.Dir, path)
	}
	return filepath.Clean(path), nil
}

// CheckLocal checks what t refers to on the user's machine: that the workdir is a folder that can be read, and that the
// local sources of file_mounts exist. The error is an ErrorList.
func (t *Task) CheckLocal(on FS) error {
	var errs ErrorList
	if w := t.Workdir; w != nil && !w.IsGit() {
		field := "workdir"
		if t.src != nil {
			if _, ok := t.src.pos["workdir.path"]; ok {
				field = "workdir.path"
			}
		}
		info, err := statAt(on, w.Path)
		switch {
		case err != nil:
			errs = append(errs, t.src.error(field, "%q %s; paths are relative to the folder where sky was started", w.Path, reason(err)))
		case !info.IsDir():
			errs = append(errs, t.src.error(field, "%q is a file; workdir must be a folder (single files go under file_mounts)", w.Path))
		default:
			if err := listAt(on, w.Path); err != nil {
				errs = append(errs, t.src.error(field, "%q %s", w.Path, reason(err)))
			}
		}
	}
	for _, m := range t.FileMounts {
		sources := []string{m.Src}
		if m.Storage != nil {
			sources = m.Storage.Source
		}
		for _, src := range sources {
			if IsBucketURL(src) {
				continue
			}
			info, err := statAt(on, src)
			switch {
			case err != nil:
				errs = append(errs, t.src.error("file_mounts."+m.Dst, "the source %q %s; paths are relative to the folder where sky was started", src, reason(err)))
			case m.Storage != nil && !m.Storage.SourceIsList && !info.IsDir():
				errs = append(errs, t.src.error("file_mounts."+m.Dst, "the source %q of a bucket is a file; write it as a list: source: [%s]", src, src))
			case m.Storage == nil && strings.HasSuffix(src, "/") && !info.IsDir():
				errs = append(errs, t.src.error("file_mounts."+m.Dst, "the source %q is a file, not a folder", src))
			}
		}
	}
	return t.mask(errs).Err()
}

func statAt(on FS, path string) (fs.FileInfo, error) {
	abs, err := on.Abs(path)
	if err != nil {
		return nil, err
	}
	return on.Stat(abs)
}

func listAt(on FS, path string) error {
	abs, err := on.Abs(path)
	if err != nil {
		return err
	}
	return on.ReadDir(abs)
}

func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "can't be read (permission denied)"
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return "can't be used: " + err.Error()
}
