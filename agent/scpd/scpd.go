// Package scpd is the far end of the old scp protocol: what `scp -t` and `scp -f` do on a node, for nodes that have no
// scp. Clients since OpenSSH 9 use sftp instead unless told otherwise (-O).
//
// It must not know SSH or the agent: it reads one stream and writes another. The protocol is a dialogue of lines, each
// answered by a zero byte, or by 1 or 2 and a message: C for a file, D and E around a folder, T for times.
//
// Invariant: names from the other side are single names; nothing is written outside the target.
package scpd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds a line of the dialogue, in bytes.
const maxLine = 8 << 10

type end struct {
	in     *bufio.Reader
	out    *bufio.Writer
	errs   io.Writer
	failed bool

	recurse, times, mustDir bool
}

// Run is `scp args…` with -t or -f among the arguments. It returns the exit code.
func Run(args []string, in io.Reader, out, errs io.Writer) int {
	e := &end{in: bufio.NewReaderSize(in, 64<<10), out: bufio.NewWriterSize(out, 64<<10), errs: errs}
	var sink, source bool
	var paths []string
	for i, a := range args {
		if a == "--" {
			paths = append(paths, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			paths = append(paths, a)
			continue
		}
		for _, c := range a[1:] {
			switch c {
			case 't':
				sink = true
			case 'f':
				source = true
			case 'r':
				e.recurse = true
			case 'p':
				e.times = true
			case 'd':
				e.mustDir = true
			case 'v', 'q', 'B', 'C', '1', '2', '4', '6':
			default:
				fmt.Fprintf(errs, "scp: the scp built into the agent of this node does not know -%c; install openssh-client on the node\n", c)
				return 1
			}
		}
	}
	var err error
	switch {
	case sink == source:
		err = errors.New("the scp built into the agent of this node only answers other machines; install openssh-client on the node to use it from here")
	case sink && len(paths) != 1:
		err = e.refuse(errors.New("ambiguous target"))
	case sink:
		err = e.sink(paths[0])
	default:
		err = e.source(paths)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintf(errs, "scp: %v\n", err)
		return 1
	}
	if e.failed {
		return 1
	}
	return 0
}

// ok answers that all is well.
func (e *end) ok() error {
	e.out.WriteByte(0)
	return e.out.Flush()
}

// refuse tells the other side of a failure. The error it returns is that of telling, or the failure itself.
func (e *end) refuse(why error) error {
	if err := e.warn(why); err != nil {
		return err
	}
	return why
}

// warn tells the other side that one thing failed; the rest goes on.
func (e *end) warn(why error) error {
	e.failed = true
	fmt.Fprintf(e.out, "\x01scp: %s\n", strings.ReplaceAll(why.Error(), "\n", " "))
	return e.out.Flush()
}

// answer reads the other side's answer. A refusal of one thing is no error: said is false.
func (e *end) answer() (said bool, err error) {
	b, err := e.in.ReadByte()
	if err != nil || b == 0 {
		return err == nil, err
	}
	line, err := e.line()
	if err != nil {
		return false, err
	}
	e.failed = true
	if b == 1 {
		return false, nil
	}
	return false, errors.New(line)
}

func (e *end) line() (string, error) {
	var b strings.Builder
	for {
		c, err := e.in.ReadByte()
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return b.String(), nil
		}
		if b.Len() >= maxLine {
			return "", errors.New("the other side sent a line that is too long")
		}
		b.WriteByte(c)
	}
}

// stamps are the times of the next file.
type stamps struct{ mtime, atime time.Time }

// sink receives files to target.
func (e *end) sink(target string) error {
	st, err := os.Stat(target)
	dir := err == nil && st.IsDir()
	if !dir && (e.mustDir || strings.HasSuffix(target, "/")) {
		return e.refuse(fmt.Errorf("%s: No such directory", target))
	}
	if err := e.ok(); err != nil {
		return err
	}
	return e.receive(target, dir, 0)
}

// receive takes what the other side sends to path: into it if that is a folder, else as it.
func (e *end) receive(path string, dir bool, depth int) error {
	var at *stamps
	for {
		c, err := e.in.ReadByte()
		if err != nil {
			if depth == 0 {
				return io.EOF // the regular end
			}
			return fmt.Errorf("the connection was cut: %w", io.ErrUnexpectedEOF)
		}
		line, err := e.line()
		if err != nil {
			return err
		}
		switch c {
		case 1:
			e.failed = true
			continue
		case 2:
			return errors.New(line)
		case 'E':
			if depth == 0 {
				return e.refuse(errors.New("protocol error: the end of a folder that did not begin"))
			}
			return e.ok()
		case 'T':
			if at, err = parseTimes(line); err == nil {
				err = e.ok()
			}
		case 'C', 'D':
			err = e.item(c, line, path, dir, at, depth)
			at = nil
		default:
			err = fmt.Errorf("protocol error: a line of kind %q", c)
		}
		if err != nil {
			return err
		}
	}
}

// item receives a file or a folder.
func (e *end) item(kind byte, line, path string, dir bool, at *stamps, depth int) error {
	mode, size, name, err := parseItem(line)
	if err != nil {
		return e.refuse(err)
	}
	if dir {
		path = filepath.Join(path, name)
	}
	if kind == 'C' {
		return e.file(path, mode, size, at)
	}
	if !e.recurse {
		return e.refuse(errors.New("protocol error: a folder without -r"))
	}
	made := false
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s: Not a directory", path)
	} else if err != nil {
		err = os.Mkdir(path, mode|0o700)
		made = err == nil
	}
	if err != nil {
		return e.refuse(err)
	}
	if err := e.ok(); err != nil {
		return err
	}
	if err := e.receive(path, true, depth+1); err != nil {
		return err
	}
	if e.times || made {
		err = os.Chmod(path, mode)
	}
	if at != nil {
		err = errors.Join(err, os.Chtimes(path, at.atime, at.mtime))
	}
	if err != nil {
		e.failed = true
		fmt.Fprintf(e.errs, "scp: %v\n", err)
	}
	return nil
}

func (e *end) file(path string, mode os.FileMode, size int64, at *stamps) error {
	_, before := os.Stat(path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, mode|0o200)
	if err != nil {
		return e.warn(err) // the other side goes on with the next one
	}
	if err := e.ok(); err != nil {
		f.Close()
		return err
	}
	n, err := io.CopyN(f, e.in, size)
	if n < size && errors.Is(err, io.EOF) {
		f.Close()
		return fmt.Errorf("the connection was cut in %s", path)
	}
	if n < size { // the disk: the rest must be read all the same
		if _, derr := io.CopyN(io.Discard, e.in, size-n); derr != nil {
			f.Close()
			return derr
		}
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil && (e.times || before != nil) {
		err = f.Chmod(mode)
	}
	err = errors.Join(err, f.Close())
	if at != nil && err == nil {
		err = os.Chtimes(path, at.atime, at.mtime)
	}
	if _, aerr := e.answer(); aerr != nil {
		return aerr
	}
	if err != nil {
		return e.warn(err)
	}
	return e.ok()
}

// parseItem reads "0644 1234 name".
func parseItem(line string) (os.FileMode, int64, string, error) {
	f := strings.SplitN(line, " ", 3)
	if len(f) == 3 {
		mode, err1 := strconv.ParseUint(f[0], 8, 32)
		size, err2 := strconv.ParseInt(f[1], 10, 64)
		if err1 == nil && err2 == nil && size >= 0 {
			if f[2] == "" || f[2] == "." || f[2] == ".." || strings.ContainsAny(f[2], "/\x00") {
				return 0, 0, "", fmt.Errorf("unexpected filename: %s", f[2])
			}
			m := os.FileMode(mode & 0o777)
			for bit, flag := range map[uint64]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
				if mode&bit != 0 {
					m |= flag
				}
			}
			return m, size, f[2], nil
		}
	}
	return 0, 0, "", fmt.Errorf("protocol error: %q", line)
}

// parseTimes reads "mtime 0 atime 0".
func parseTimes(line string) (*stamps, error) {
	var m, mu, a, au int64
	if _, err := fmt.Sscanf(line, "%d %d %d %d", &m, &mu, &a, &au); err != nil {
		return nil, fmt.Errorf("protocol error: %q", line)
	}
	return &stamps{time.Unix(m, mu*1000), time.Unix(a, au*1000)}, nil
}

// source sends files.
func (e *end) source(paths []string) error {
	if _, err := e.answer(); err != nil {
		return err
	}
	for _, p := range paths {
		if err := e.send(p); err != nil {
			return err
		}
	}
	return nil
}

func (e *end) send(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return e.warn(tell(path, err))
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return e.warn(tell(path, err))
	case st.IsDir() && e.recurse:
		return e.folder(f, st)
	case !st.Mode().IsRegular():
		return e.warn(fmt.Errorf("%s: not a regular file", path))
	}
	if good, err := e.header("C", st, st.Size()); err != nil || !good {
		return err
	}
	n, err := io.CopyN(e.out, f, st.Size())
	if n < st.Size() { // it shrank: the other side waits for so many bytes
		if _, perr := io.CopyN(e.out, zeros{}, st.Size()-n); perr != nil {
			return perr
		}
		if err == io.EOF {
			err = errors.New("the file shrank while it was read")
		}
		if werr := e.warn(tell(path, err)); werr != nil {
			return werr
		}
	} else if err := e.ok(); err != nil {
		return err
	}
	_, err = e.answer()
	return err
}

// tell names the path of an error once.
func tell(path string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// header announces a file or folder, with its times if they are wanted.
func (e *end) header(kind string, st os.FileInfo, size int64) (good bool, err error) {
	if strings.Contains(st.Name(), "\n") {
		return false, e.warn(fmt.Errorf("%q: the protocol has no way to send a name with a line break", st.Name()))
	}
	if e.times {
		fmt.Fprintf(e.out, "T%d 0 %d 0\n", st.ModTime().Unix(), st.ModTime().Unix())
		if err := e.out.Flush(); err != nil {
			return false, err
		}
		if good, err := e.answer(); err != nil || !good {
			return good, err
		}
	}
	mode := uint32(st.Mode().Perm())
	for flag, bit := range map[os.FileMode]uint32{os.ModeSetuid: 0o4000, os.ModeSetgid: 0o2000, os.ModeSticky: 0o1000} {
		if st.Mode()&flag != 0 {
			mode |= bit
		}
	}
	fmt.Fprintf(e.out, "%s%04o %d %s\n", kind, mode, size, st.Name())
	if err := e.out.Flush(); err != nil {
		return false, err
	}
	return e.answer()
}

func (e *end) folder(d *os.File, st os.FileInfo) error {
	if good, err := e.header("D", st, 0); err != nil || !good {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		if err := e.warn(tell(d.Name(), err)); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := e.send(filepath.Join(d.Name(), n)); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.out, "E\n")
	if err := e.out.Flush(); err != nil {
		return err
	}
	_, err = e.answer()
	return err
}
