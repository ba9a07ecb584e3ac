//go:build unix

package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/agent/proctree"
)

// Claim is what one node of a cluster holds.
type Claim struct {
	ID           string `json:"id"` // of the node
	Installation string `json:"installation"`
	Cluster      string `json:"cluster"`
	Hash         string `json:"hash"`
	Nodes        int    `json:"nodes,omitempty"` // of the cluster
	User         string `json:"user,omitempty"`  // who launched it
	Login        string `json:"login,omitempty"` // whom the node's processes belong to on this machine

	CPUs     float64  `json:"cpus"`
	MemoryGB float64  `json:"memory_gb"`
	GPUs     []string `json:"gpus,omitempty"`

	// Dir is the node's folder, Config the file its init was started with, Mark the value of SKYLOOM_NODE in the
	// environment of its processes.
	Dir    string `json:"dir"`
	Config string `json:"config"`
	Mark   string `json:"mark"`
	// Boot and Holder tell whose life the claim hangs on: the process that sets the node up, then the node's init.
	Boot   string        `json:"boot"`
	Holder proctree.Proc `json:"holder"`
	// Isolated says that the kernel ends every process of the node with its init.
	Isolated bool      `json:"isolated,omitempty"`
	Since    time.Time `json:"since"`

	file string
}

// Machine is what there is to be claimed.
type Machine struct {
	CPUs     float64    `json:"cpus"`
	MemoryGB float64    `json:"memory_gb"`
	GPUs     []gpus.GPU `json:"gpus,omitempty"`
}

// Want is what a node asks for. A fraction of a GPU takes a whole one.
type Want struct {
	CPUs             float64 `json:"cpus"`
	MemoryGB         float64 `json:"memory_gb"`
	Accelerator      string  `json:"accelerator,omitempty"`
	AcceleratorCount float64 `json:"accelerator_count,omitempty"`
}

// Full is the answer to a claim that does not fit beside the others.
type Full struct{ Reason string }

func (f *Full) Error() string { return f.Reason }

// slack is what may be claimed beyond the machine, against rounding: a hundredth of a CPU or gigabyte.
const slack = 0.01

// Free is what is left of a machine beside claims.
func Free(m Machine, held []Claim) Machine {
	free := Machine{CPUs: m.CPUs, MemoryGB: m.MemoryGB}
	taken := map[string]bool{}
	for _, c := range held {
		free.CPUs -= c.CPUs
		free.MemoryGB -= c.MemoryGB
		for _, g := range c.GPUs {
			taken[g] = true
		}
	}
	for _, g := range m.GPUs {
		if !taken[g.ID] {
			free.GPUs = append(free.GPUs, g)
		}
	}
	free.CPUs, free.MemoryGB = max(0, free.CPUs), max(0, free.MemoryGB)
	return free
}

// Fit picks the devices of a node that asks for want beside the claims held. It gives a *Full that says what is missing
// and who holds it.
func Fit(m Machine, held []Claim, want Want) (devices []string, err error) {
	free := Free(m, held)
	holders := func() string {
		if len(held) == 0 {
			return ""
		}
		var names []string
		for _, c := range held {
			n := c.Cluster
			if c.User != "" {
				n += " of " + c.User
			}
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		sort.Strings(names)
		if len(names) > 4 {
			names = append(names[:4], fmt.Sprintf("%d more", len(names)-4))
		}
		return "; held by " + strings.Join(names, ", ")
	}
	full := func(what string, have, free, asked float64) error {
		return &Full{fmt.Sprintf("%s %s of %s free, %s asked for%s", num(free), what, num(have), num(asked), holders())}
	}
	if want.CPUs > free.CPUs+slack {
		return nil, full("CPUs", m.CPUs, free.CPUs, want.CPUs)
	}
	if want.MemoryGB > free.MemoryGB+slack {
		return nil, full("GB of memory", m.MemoryGB, free.MemoryGB, want.MemoryGB)
	}
	need := Devices(want)
	if need == 0 {
		return nil, nil
	}
	total := 0
	for _, g := range m.GPUs {
		if strings.EqualFold(g.Name, want.Accelerator) {
			total++
		}
	}
	for _, g := range free.GPUs {
		if strings.EqualFold(g.Name, want.Accelerator) && len(devices) < need {
			devices = append(devices, g.ID)
		}
	}
	if len(devices) < need {
		return nil, full(want.Accelerator, float64(total), float64(len(devices)), float64(need))
	}
	return devices, nil
}

// Devices is the number of GPUs that a node holds.
func Devices(w Want) int { return int(math.Ceil(w.AcceleratorCount - 1e-9)) }

func num(f float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", f), "0"), ".")
}

// Ledger is the folder of claims, locked.
type Ledger struct {
	dir  string
	lock *os.File
	see  observer
}

// Dir is where the ledger of this machine is: the same for all its users. It is the first of the folders everybody may
// write to that keeps what is in it; it gets an error if there is none. SKYLOOM_CLAIMS names another one, for installations
// whose GPUs are not this machine's, such as those of tests.
func Dir() (string, error) {
	if d := os.Getenv("SKYLOOM_CLAIMS"); filepath.IsAbs(d) {
		return d, nil
	}
	for _, d := range []string{"/var/tmp", "/tmp", "/dev/shm"} {
		st, err := os.Stat(d)
		if err == nil && st.IsDir() && st.Mode().Perm()&0o002 != 0 && st.Mode()&fs.ModeSticky != 0 && writable(d) {
			return filepath.Join(d, "skyloom-claims"), nil
		}
	}
	return "", errors.New("none of /var/tmp, /tmp and /dev/shm is a folder that every user may write to: claims of users on this machine would not see each other")
}

const lockName = "lock"

// Open makes the folder if need be and takes its lock; it waits for others until ctx ends.
func Open(ctx context.Context, dir string) (*Ledger, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		l, err := tryOpen(dir)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the claims in %s are locked by another process: %w", dir, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// tryOpen gives nil and no error if another holds the lock, or the folder went away meanwhile.
func tryOpen(dir string) (*Ledger, error) {
	if err := os.Mkdir(dir, 0o700); err == nil {
		// Mkdir's mode is cut by the umask.
		if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("the folder of claims can't be made: %w", err)
	}
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("%s is no folder of claims: remove it", dir)
	}
	path := filepath.Join(dir, lockName)
	// Opened for reading, so that one user's lock file serves all; and not with O_CREAT if it is there, which a kernel with
	// protected_regular refuses to whoever does not own it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o644)
		if err == nil {
			f.Chmod(0o644)
		}
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil, unlessRefused(err, dir)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		// Its maker has not come to its mode yet.
		return nil, unlessRefused(err, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("the claims can't be locked: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		mine, err1 := f.Stat()
		now, err2 := os.Lstat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			return &Ledger{dir: dir, lock: f, see: system{}}, nil
		}
	}
	f.Close()
	if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
		return nil, fmt.Errorf("the claims can't be locked: %w", err)
	}
	return nil, nil
}

// unlessRefused gives the error if the folder's state is no passing one.
func unlessRefused(err error, dir string) error {
	st, serr := os.Stat(dir)
	if serr != nil || time.Since(st.ModTime()) < 5*time.Second || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("the claims in %s can't be locked: %w", dir, err)
}

// Close gives the lock back, and removes the folder if nothing is claimed any more and it may.
func (l *Ledger) Close() {
	if all, err := l.read(); err == nil && len(all) == 0 {
		if es, err := os.ReadDir(l.dir); err == nil && len(es) == 1 {
			// Whoever opened the lock file before sees that it is no longer the one in the folder.
			if os.Remove(filepath.Join(l.dir, lockName)) == nil {
				os.Remove(l.dir)
			}
		}
	}
	l.lock.Close()
}

func (l *Ledger) read() ([]Claim, error) {
	es, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("the claims can't be read: %w", err)
	}
	var out []Claim
	for _, e := range es {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(l.dir, e.Name())
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c := Claim{file: path}
		if err == nil {
			err = json.Unmarshal(b, &c)
		}
		if err != nil || c.ID == "" {
			return nil, fmt.Errorf("the claim %s can't be read (%v): it may hold GPUs, so nothing is given out; remove the file if its cluster is gone", path, err)
		}
		out = append(out, c)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].file < out[j].file })
	return out, nil
}

// Live gives the claims that count, and removes the stale ones as far as it may.
func (l *Ledger) Live() ([]Claim, error) {
	all, err := l.read()
	if err != nil {
		return nil, err
	}
	var live []Claim
	for _, c := range all {
		if why := stale(c, l.see); why != "" {
			os.Remove(c.file)
			continue
		}
		live = append(live, c)
	}
	return live, nil
}

// Take claims want of the machine for a node. A claim that the node has already is replaced. It gives a *Full if it does not fit.
func (l *Ledger) Take(m Machine, want Want, c Claim) (Claim, error) {
	live, err := l.Live()
	if err != nil {
		return c, err
	}
	c.file = l.path(c)
	live = slices.DeleteFunc(live, func(o Claim) bool { return o.file == c.file })
	if c.GPUs, err = Fit(m, live, want); err != nil {
		return c, err
	}
	c.CPUs, c.MemoryGB = want.CPUs, want.MemoryGB
	return c, l.Put(c)
}

// Put writes a claim down as it is.
func (l *Ledger) Put(c Claim) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(l.path(c), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("the claim can't be written: %w", err)
	}
	return nil
}

// Release gives a node's claim back. One that is not there is no error.
func (l *Ledger) Release(c Claim) error {
	err := os.Remove(l.path(c))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the claim can't be removed: %w", err)
	}
	return nil
}

// path is a claim's file: node ids repeat between installations.
func (l *Ledger) path(c Claim) string {
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
				return r
			}
			return '_'
		}, s)
	}
	inst := clean(c.Installation)
	if len(inst) > 40 {
		inst = inst[:40]
	}
	return filepath.Join(l.dir, clean(c.ID)+"@"+inst+".json")
}
