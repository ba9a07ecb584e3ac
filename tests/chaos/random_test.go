package chaos

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/rig"
)

// pause is the least time between two kills of the server.
const pause = 10 * time.Second

// TestRandomKills kills the server and agents at random moments under the load of several clients. Most clusters have one
// driver, which knows what each of its requests must come to; one is fought over.
func TestRandomKills(t *testing.T) {
	programs(t)
	rng := seeded(t)
	seeds := make([]uint64, 8)
	for i := range seeds {
		seeds[i] = rng.Uint64()
	}
	t.Parallel()
	in := open(t)
	stopLooking := in.Observe()
	defer stopLooking()
	l := &load{in: in, files: in.Upload("content of a workdir")}
	for i := range 3 {
		l.start(func() { l.drive(&subject{in: in, name: fmt.Sprint("solo", i)}, rand.New(rand.NewPCG(seeds[i], 2))) })
	}
	for i := range 2 {
		l.start(func() { l.fight("melee", rand.New(rand.NewPCG(seeds[3+i], 3))) })
	}
	kills := randomKills()
	for i := range kills {
		wait := pause + time.Duration(rng.Int64N(int64(3*time.Second)))
		// The time between two kills of the server is the agents'.
		at := time.Duration(rng.Int64N(int64(wait)))
		time.Sleep(at)
		l.killAgent(rng)
		time.Sleep(wait - at)
		if t.Failed() {
			break
		}
		in.Kill()
		if (i+1)%10 == 0 {
			t.Logf("%d kills of the server, %d of agents, %d requests", i+1, l.agents.Load(), len(in.Asks()))
		}
	}
	l.stop()
	in.verify()
	for _, name := range []string{"solo0", "solo1", "solo2", "melee"} {
		if in.Status(name) != "" {
			in.Do("down", name, rig.Job{}, rig.Succeeds)
		}
	}
	in.verify()
	t.Logf("%d kills of the server, %d of agents, %d of nodes, %d requests; the longest took %v", in.Deaths(), l.agents.Load(), l.nodes.Load(), len(in.Asks()), l.longest())
}

// load is several clients at work.
type load struct {
	in     *instance
	files  []api.FileMount
	wg     sync.WaitGroup
	over   atomic.Bool
	agents atomic.Int64 // killed
	nodes  atomic.Int64
	most   atomic.Int64 // nanoseconds
}

func (l *load) start(f func()) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		f()
	}()
}

func (l *load) stop() {
	l.over.Store(true)
	l.wg.Wait()
}

func (l *load) going() bool { return !l.over.Load() && !l.in.t.Failed() }

func (l *load) longest() time.Duration { return time.Duration(l.most.Load()).Round(time.Millisecond) }

// do is an operation by itself, timed.
func (l *load) do(op, cluster string, j rig.Job, want func(api.Request) error) (*rig.Ask, *api.Request) {
	begin := time.Now()
	a, r := l.in.Do(op, cluster, j, want)
	for took := int64(time.Since(begin)); ; {
		was := l.most.Load()
		if took <= was || l.most.CompareAndSwap(was, took) {
			return a, r
		}
	}
}

// killAgent kills an agent of some node; its init starts it again.
func (l *load) killAgent(rng *rand.Rand) {
	var serves []int
	for _, p := range l.in.processes() {
		if p.verb() == "serve" {
			serves = append(serves, p.pid)
		}
	}
	if len(serves) == 0 {
		return
	}
	if syscall.Kill(serves[rng.IntN(len(serves))], syscall.SIGKILL) == nil {
		l.agents.Add(1)
	}
}

// drive works on a cluster that nobody else touches: every request has one right outcome.
func (l *load) drive(c *subject, rng *rand.Rand) {
	c.state = "none"
	for l.going() {
		l.step(c, rng)
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	}
}

func (l *load) step(c *subject, rng *rand.Rand) {
	does := func(op string, j rig.Job, state string) {
		if _, r := l.do(op, c.name, j, rig.Succeeds); r != nil && r.Status == api.RequestSucceeded {
			c.state = state
		}
	}
	quick := rig.Job{Sleep: fmt.Sprintf("0.%d", rng.IntN(10))}
	if rng.IntN(3) == 0 {
		quick.Files = l.files
	}
	dice := rng.IntN(100)
	switch c.state {
	case "none":
		switch {
		case dice < 10:
			op := []string{"exec", "stop", "start", "down", "cancel", "autostop"}[rng.IntN(6)]
			a := l.in.Ask(op, c.name, quick, rig.Fails(api.ErrClusterDoesNotExist))
			a.Least, a.Most = 0, 0
			l.in.Wait(a)
		case dice < 35:
			l.many(c, "launch", 2, quick)
			c.state = "up"
		case dice < 50:
			l.changeMind(c, rng)
		default:
			quick.Nodes = 1 + rng.IntN(2)
			does("launch", quick, "up")
		}
	case "up":
		switch {
		case dice < 30:
			l.many(c, "exec", 1+rng.IntN(4), quick)
		case dice < 40:
			l.cancel(c)
		case dice < 50:
			does("autostop", rig.Job{}, "up")
		case dice < 60:
			does("launch", quick, "up")
		case dice < 75:
			l.quiet(c)
			does("stop", rig.Job{}, "stopped")
		case dice < 80:
			does("start", rig.Job{}, "up") // it is up already
		case dice < 85:
			l.idleOut(c)
		case dice < 90:
			l.loseNode(c)
		default:
			l.quiet(c)
			does("down", rig.Job{}, "none")
		}
	case "stopped":
		switch {
		case dice < 50:
			does("start", rig.Job{}, "up")
		case dice < 70:
			does("launch", quick, "up")
		case dice < 80:
			a := l.in.Ask("exec", c.name, quick, rig.Fails(api.ErrClusterNotUp))
			a.Least, a.Most = 0, 0
			l.in.Wait(a)
		case dice < 85:
			does("stop", rig.Job{}, "stopped") // it is stopped already
		default:
			does("down", rig.Job{}, "none")
		}
	}
}

// many sends several requests at once; all of them must succeed.
func (l *load) many(c *subject, op string, n int, j rig.Job) {
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			l.do(op, c.name, j, rig.Succeeds)
		}()
	}
	wg.Wait()
}

// changeMind launches and cancels the launch. It ends as SUCCEEDED or CANCELLED; a cluster that was never up is gone then.
func (l *load) changeMind(c *subject, rng *rand.Rand) {
	a := l.in.Ask("launch", c.name, rig.Job{Sleep: "0.2"}, rig.Either(rig.Succeeds, rig.Cancelled))
	time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
	l.in.CancelRequest(a)
	r := l.in.Wait(a)
	if r == nil {
		return
	}
	if r.Status == api.RequestCancelled {
		a.Least = 0
	}
	switch s := l.in.Status(c.name); {
	case s == api.ClusterUp:
		c.state = "up"
	case s == "" && r.Status == api.RequestCancelled:
		c.state = "none"
	default:
		l.in.t.Errorf("%v ended as %s and its cluster is %q\n%s", a, r.Status, s, l.in.Story(a))
	}
}

// quiet waits until every job of the cluster has ended, so that what ends it takes none along.
func (l *load) quiet(c *subject) {
	l.in.Eventually("the jobs of "+c.name+" end", func() bool { return l.in.Unfinished(c.name) == 0 })
}

// cancel starts a job that takes for ever, and cancels it.
func (l *load) cancel(c *subject) {
	a, r := l.do("exec", c.name, rig.Job{Sleep: "600"}, rig.Succeeds)
	if r == nil {
		return
	}
	a.Least = 0 // it may not have begun yet
	l.do("cancel", c.name, rig.Job{}, rig.Succeeds)
	l.in.JobReaches(a, r, api.JobCancelled)
	for _, other := range l.in.Asks() { // so were the jobs before it
		if other.Cluster == c.name && other.Ranks > 0 {
			other.Least = 0
		}
	}
}

// idleOut lets the cluster stop itself.
func (l *load) idleOut(c *subject) {
	l.quiet(c)
	l.do("autostop", c.name, rig.Job{}, rig.Succeeds)
	l.in.idle(c.name)
	// A server that is killed now sends its own rule once more as it comes back.
	again := time.Now().Add(2 * time.Second)
	if l.in.Eventually(c.name+" is stopped", func() bool {
		if l.in.Status(c.name) == api.ClusterStopped {
			return true
		}
		if time.Now().After(again) {
			l.in.hurry(c.name)
			again = time.Now().Add(2 * time.Second)
		}
		return false
	}) {
		c.state = "stopped"
	}
}

// loseNode kills a node behind the server's back, as a crash of the machine would, and takes the rest down.
func (l *load) loseNode(c *subject) {
	var inits []int
	for _, p := range l.in.processes() {
		if ok, _ := filepath.Match(c.name+"-*/node*", p.node); ok && p.verb() == "init" {
			inits = append(inits, p.pid)
		}
	}
	if len(inits) == 0 {
		l.in.t.Errorf("%s is up and has no nodes", c.name)
		return
	}
	l.quiet(c)
	syscall.Kill(inits[0], syscall.SIGKILL)
	l.nodes.Add(1)
	l.in.Eventually(c.name+" is seen to be broken or gone", func() bool { s := l.in.Status(c.name); return s == "" || s == api.ClusterInit })
	l.do("down", c.name, rig.Job{}, rig.Either(rig.Succeeds, rig.Fails(api.ErrClusterDoesNotExist)))
	c.state = "none"
}

// fight works on a cluster that another client works on too: what a request comes to depends on who was first, but it
// comes to an end, and no job runs twice.
func (l *load) fight(name string, rng *rand.Rand) {
	lost := rig.Fails(api.ErrClusterDoesNotExist, api.ErrClusterNotUp, api.ErrResourcesMismatch)
	for l.going() {
		op := []string{"launch", "launch", "launch", "exec", "exec", "exec", "cancel", "autostop", "stop", "start", "down"}[rng.IntN(11)]
		a := l.in.Ask(op, name, rig.Job{Sleep: fmt.Sprintf("0.%d", rng.IntN(10))}, rig.Either(rig.Succeeds, rig.Cancelled, lost))
		a.Least = 0
		if rng.IntN(6) == 0 {
			l.in.CancelRequest(a)
		}
		if r := l.in.Wait(a); r != nil && r.Status == api.RequestFailed && a.Ranks > 0 {
			a.Most = 0
		}
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
	}
}
