package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/rig"
)

// What every request passes, and what each kind of operation passes besides, in the order in which it does.
var (
	accepting = []string{"submit.before-start-workflow", "submit.after-start-workflow", "request.before-deliver", "request.after-deliver"}
	replying  = []string{"op.before-reply-row", "op.between-row-and-reply", "op.after-reply"}
	passing   = map[string][]string{
		"launch": {"provision.before-create", "local.create-after-record", "local.create-after-start", "provision.after-create", "provision.after-configure",
			"sync.before-send", "sync.before-apply", "job.before-submit", "job.after-submit"},
		"exec":     {"sync.before-send", "sync.before-apply", "job.before-submit", "job.after-submit"},
		"cancel":   {"cancel.after-cancel"},
		"autostop": nil,
		"stop":     {"stop.before-stop", "local.stop-after-record", "stop.after-stop"},
		"start":    {"provision.before-create", "local.start-after-record", "local.create-after-start", "provision.after-create", "provision.after-configure"},
		"down":     {"down.before-delete", "local.delete-after-kill", "local.delete-after-remove", "down.after-delete"},
	}
	operations = []string{"launch", "exec", "cancel", "autostop", "stop", "start", "down"} // a cluster's life
)

// unreachable are points that no operation on an instance passes, with the reason.
var unreachable = map[string]string{
	"ssh.create-after-note": onHosts, "ssh.create-after-make": onHosts, "ssh.delete-after-free": onHosts,
	"host.create-after-claim": inCalls, "host.create-after-record": inCalls, "host.create-after-start": inCalls,
	"host.delete-after-kill": inCalls, "host.delete-after-free": inCalls,
}

const (
	onHosts = "needs hosts that are reached by SSH: tests/e2essh visits it"
	inCalls = "is in the program on a shared host, not in the server: agent/sharedhost visits it"
)

// visit is a kill of the server at a point during an operation. Once the operation is told to have ended, then follows at
// once: the workflow has not heard of that end yet, and must come to the same one.
type visit struct{ op, point, then string }

// visits are the pairs to try: each point during one operation that passes it, or during all of them.
func visits(rng *rand.Rand, all bool) []visit {
	ops := map[string][]string{}
	for _, op := range operations {
		for _, p := range slices.Concat(accepting, passing[op], replying) {
			ops[p] = append(ops[p], op)
		}
	}
	var out []visit
	for point, list := range ops {
		if !all {
			list = []string{list[rng.IntN(len(list))]}
		}
		for _, op := range list {
			out = append(out, visit{op, point, ""})
		}
	}
	for _, v := range []visit{{"launch", "op.after-reply", "stop"}, {"launch", "op.between-row-and-reply", "down"}, {"start", "op.after-reply", "stop"},
		{"start", "op.after-reply", "down"}, {"exec", "op.after-reply", "stop"}, {"autostop", "op.after-reply", "stop"}, {"stop", "op.after-reply", "start"},
		{"stop", "op.after-reply", "launch"}, {"down", "op.after-reply", "launch"}, {"exec", "op.between-row-and-reply", "down"}} {
		if all || rng.IntN(3) == 0 {
			out = append(out, v)
		}
	}
	order := func(v visit) (int, int) {
		return slices.Index(operations, v.op), slices.Index(slices.Concat(accepting, passing[v.op], replying), v.point)
	}
	slices.SortFunc(out, func(a, b visit) int {
		ao, ap := order(a)
		bo, bp := order(b)
		return cmp.Or(ao-bo, ap-bp)
	})
	return out
}

// shards is over how many instances the visits are spread: most of the time is spent waiting for time limits.
const shards = 2

// TestFailpoints kills the server once at each named point, and expects every operation to end as if nothing had been.
func TestFailpoints(t *testing.T) {
	names := serverPoints(t)
	t.Parallel()
	todo := visits(seeded(t), thorough())
	for _, name := range names {
		_, excused := unreachable[name]
		if reached := slices.Contains(slices.Concat(savePoints, bucketPoints, batchPoints, managedPoints), name) || slices.ContainsFunc(todo, func(v visit) bool { return v.point == name }); reached == excused {
			t.Errorf("point %s: visited is %v, unreachable is %v", name, reached, excused)
		}
	}
	for _, v := range todo {
		if !slices.Contains(names, v.point) {
			t.Fatalf("the server has no point %s", v.point)
		}
	}
	for i := range shards {
		part := todo[len(todo)*i/shards : len(todo)*(i+1)/shards]
		t.Run(fmt.Sprint("part", i+1), func(t *testing.T) {
			t.Parallel()
			visitAll(open(t), part)
		})
	}
}

func visitAll(in *instance, todo []visit) {
	t := in.t
	defer in.Observe()()
	c := &subject{in: in, name: "fp"}
	var slowest time.Duration
	for _, v := range todo {
		c.bring(before[v.op])
		// New content each time: what is in order on the nodes is not sent and not put in place again.
		j := rig.Job{Files: in.Upload("content for " + v.op + " at " + v.point)}
		if v.op == "launch" {
			j.Nodes = 2
		}
		if v.op == "cancel" {
			in.Do("exec", c.name, rig.Job{Sleep: "300"}, rig.Succeeds)
		}
		time.Sleep(200 * time.Millisecond) // what came before is through with its own points
		in.arm(v.point)
		begin := time.Now()
		a, r := in.Do(v.op, c.name, j, rig.Succeeds)
		took := time.Since(begin)
		c.state = after[v.op]
		switch {
		case v.then != "":
			a.Least = 0 // what follows may end its job before it begins
			in.Do(v.then, c.name, rig.Job{}, rig.Succeeds)
			c.state = after[v.then]
		case r != nil && a.Ranks > 0:
			in.JobReaches(a, r, api.JobSucceeded)
		}
		at := in.awaitKill(v.point)
		if at.IsZero() {
			t.Fatalf("%s did not pass %s", v.op, v.point)
		}
		recovered := max(0, begin.Add(took).Sub(at))
		in.Healthy(2 * time.Minute)
		in.settles()
		t.Logf("%-8s killed at %-28s ended after %v, %v after the kill %s", v.op, v.point, took.Round(time.Millisecond), recovered.Round(time.Millisecond), v.then)
		slowest = max(slowest, recovered)
		if t.Failed() {
			return
		}
	}
	c.bring("none")
	in.verify()
	t.Logf("the slowest operation ended %v after its kill", slowest.Round(time.Millisecond))
}

// awaitKill gives the time at which an armed point has killed; zero: it did not.
func (in *instance) awaitKill(point string) time.Time {
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if at, ok := in.fired(point); ok {
			return at
		}
		if time.Now().After(end) {
			in.disarm(point)
			return time.Time{}
		}
	}
}

// State of a cluster before and after each operation.
var (
	before = map[string]string{"launch": "none", "exec": "up", "cancel": "up", "autostop": "up", "stop": "up", "start": "stopped", "down": "up"}
	after  = map[string]string{"launch": "up", "exec": "up", "cancel": "up", "autostop": "up", "stop": "stopped", "start": "up", "down": "none"}
)

// subject is a cluster that one driver alone works on, so that it knows its state.
type subject struct {
	in    *instance
	name  string
	state string // none, up, stopped
}

// bring takes the cluster to a state by operations that nothing disturbs.
func (c *subject) bring(state string) {
	c.in.t.Helper()
	if c.state == "" {
		c.state = "none"
	}
	step := func(op, to string) {
		if a, r := c.in.Do(op, c.name, rig.Job{}, rig.Succeeds); r != nil && a.Ranks > 0 {
			c.in.JobReaches(a, r, api.JobSucceeded)
		}
		c.state = to
	}
	switch {
	case c.state == state:
	case state == "none":
		step("down", "none")
	case state == "up" && c.state == "none":
		step("launch", "up")
	case state == "up":
		step("start", "up")
	case state == "stopped":
		c.bring("up")
		step("stop", "stopped")
	default:
		panic(fmt.Sprintf("no way from %s to %s", c.state, state))
	}
}
