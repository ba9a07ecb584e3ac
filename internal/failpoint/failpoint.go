package failpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Variables of the environment.
const (
	Env    = "SKYLOOM_FAILPOINTS"
	EnvDir = "SKYLOOM_FAILPOINT_DIR"
)

// ErrInjected is in the chain of every error that a point makes.
var ErrInjected = errors.New("injected by a failpoint")

var (
	on atomic.Bool // anything is switched on

	mu      sync.Mutex
	names   = map[string]bool{}
	actions = map[string]*action{}
	dir     string
	confErr error
)

func init() { load(os.Getenv(Env), os.Getenv(EnvDir)) }

type action struct {
	kind  string // kill, error, sleep
	sleep time.Duration
	left  int // errors still to come; -1: no end
}

// load reads a configuration, replacing the one in force.
func load(conf, folder string) {
	mu.Lock()
	defer mu.Unlock()
	dir, confErr, actions = folder, nil, map[string]*action{}
	for _, part := range strings.FieldsFunc(conf, func(r rune) bool { return r == ';' || r == ',' }) {
		name, what, _ := strings.Cut(strings.TrimSpace(part), "=")
		a, err := parse(what)
		if err == nil && a.kind == "kill" && folder == "" {
			err = fmt.Errorf("kill needs a folder in %s", EnvDir)
		}
		if err != nil {
			confErr = errors.Join(confErr, fmt.Errorf("%s: %q: %w", Env, part, err))
			continue
		}
		actions[name] = a
	}
	on.Store(len(actions) > 0)
}

func parse(what string) (*action, error) {
	kind, arg, has := strings.Cut(what, ":")
	a := &action{kind: kind, left: -1}
	var err error
	switch {
	case kind == "kill" && !has, kind == "error" && !has:
	case kind == "error":
		a.left, err = strconv.Atoi(arg)
	case kind == "sleep":
		a.sleep, err = time.ParseDuration(arg)
	default:
		err = errors.New("want kill, error, error:N or sleep:DURATION")
	}
	return a, err
}

// Register makes a point known. Call it at init; it returns the name, to be given to Hit.
func Register(name string) string {
	mu.Lock()
	defer mu.Unlock()
	if name == "" || strings.ContainsAny(name, "=;,/\\ ") || names[name] {
		panic("failpoint: bad or repeated name " + strconv.Quote(name))
	}
	names[name] = true
	return name
}

// Names lists the known points, sorted.
func Names() []string {
	mu.Lock()
	defer mu.Unlock()
	out := make([]string, 0, len(names))
	for n := range names {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

// Check says what is wrong with the environment: a syntax error, or a point that nobody registered. Call it in main,
// since a test that crashes nothing looks like a pass.
func Check() error {
	mu.Lock()
	defer mu.Unlock()
	err := confErr
	for n := range actions {
		if !names[n] {
			err = errors.Join(err, fmt.Errorf("%s: no point is called %q", Env, n))
		}
	}
	return err
}

// Hit marks that the point was reached. It returns an ErrInjected if told to, else nil.
func Hit(name string) error {
	if !on.Load() {
		return nil
	}
	return hit(name, kill)
}

func hit(name string, kill func()) error {
	mu.Lock()
	a := actions[name]
	if a == nil {
		mu.Unlock()
		return nil
	}
	folder := dir
	fail := a.kind == "error" && a.left != 0
	if fail && a.left > 0 {
		a.left--
	}
	mu.Unlock()
	switch {
	case fail:
		return fmt.Errorf("%s: %w", name, ErrInjected)
	case a.kind == "sleep":
		time.Sleep(a.sleep)
	case a.kind == "kill" && mark(folder, name):
		kill()
	}
	return nil
}

// Marker is the file that says that name has killed its process.
func Marker(folder, name string) string { return filepath.Join(folder, name+".killed") }

// mark makes the marker; false if it is there, or can't be made: a point that kills without end tests nothing.
func mark(folder, name string) bool {
	f, err := os.OpenFile(Marker(folder, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	_ = f.Close()
	return true
}

// kill ends the process as kill -9 does: nothing deferred runs, nothing is flushed.
func kill() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Kill()
	}
	select {} // the signal is on its way
}
