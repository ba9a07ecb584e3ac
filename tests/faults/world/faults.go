package world

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/providers/memory"
)

// Rates are the chances, between 0 and 1, of what may happen to the calls of workflows and activities.
type Rates struct {
	// Before, Midway and After: the server dies before, during and after an attempt of an activity: its result is lost.
	Before, Midway, After float64
	// Zombie: the server is believed dead, but its attempt goes on beside the next one for a while.
	Zombie float64
	// Twice and Late: a signal is delivered again, soon or up to a minute later, to the same execution. Slow: it takes
	// up to eight seconds to be delivered. Unsure: it is delivered, and the caller gets an error.
	Twice, Late, Slow, Unsure float64
	// ContinueAsNew: an idle cluster's workflow finds its history long.
	ContinueAsNew float64
}

// errDied is what an attempt ends with whose server died.
var errDied = errors.New("the server died")

type faults struct {
	seed  int64
	rates Rates

	mu      sync.Mutex
	off     bool
	real    bool // in real time: waits are short, and the engine retries
	counts  map[string]int
	hits    map[string]int
	losses  map[string]int                      // by activity: how many more results are lost
	options map[string]workflow.ActivityOptions // by workflow and activity, as asked for last
	base    context.Context                     // ends with the world
	cancels map[string]context.CancelFunc       // of activities under way, by workflow and activity id
	wg      sync.WaitGroup
}

func newFaults(ctx context.Context, seed int64, r Rates) *faults {
	return &faults{seed: seed, rates: r, counts: map[string]int{}, hits: map[string]int{}, losses: map[string]int{}, cancels: map[string]context.CancelFunc{}, options: map[string]workflow.ActivityOptions{}, base: ctx}
}

// stop ends the faults of activities and signals.
func (f *faults) stop() {
	f.mu.Lock()
	f.off = true
	f.mu.Unlock()
}

// roll draws a number in [0,1) for the next event of a kind and key; 1 once faults are over.
func (f *faults) roll(kind, key string) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return 1
	}
	k := kind + "|" + key
	f.counts[k]++
	return draw(f.seed, fmt.Sprintf("%s|%d", k, f.counts[k]))
}

func draw(seed int64, key string) float64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d|%s", seed, key)
	x := h.Sum64()
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

// lost says that the result of an activity that went well is lost.
func (f *faults) lost(typ, key string) bool {
	f.mu.Lock()
	scripted := f.losses[typ] > 0
	if scripted {
		f.losses[typ]--
	}
	f.mu.Unlock()
	return scripted || f.roll("after", key) < f.rates.After
}

// pace shortens a time that would really pass.
func (f *faults) pace(d time.Duration) time.Duration {
	if f.real {
		return d / 20
	}
	return d
}

// hit counts a fault that struck.
func (f *faults) hit(kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hits[kind]++
}

// signal lets a signal meet its faults. deliver returns how to deliver it once more.
func (f *faults) signal(ctx context.Context, key string, deliver func() (again func(), err error)) error {
	if r := f.roll("slow", key); r < f.rates.Slow {
		f.hit("signal slow")
		if err := sleep(ctx, time.Duration(r/f.rates.Slow*float64(f.pace(8*time.Second)))); err != nil {
			return err
		}
	}
	again, err := deliver()
	if err != nil {
		return err
	}
	if f.roll("twice", key) < f.rates.Twice {
		f.hit("signal twice")
		again()
	}
	if r := f.roll("late", key); r < f.rates.Late {
		f.hit("signal late")
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			if sleep(f.base, time.Duration(r/f.rates.Late*float64(f.pace(time.Minute)))) == nil {
				again()
			}
		}()
	}
	if f.roll("unsure", key) < f.rates.Unsure {
		f.hit("signal unsure")
		return errors.New("the engine did not answer; it may have taken the signal")
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (f *faults) remember(workflowID, typ string, o workflow.ActivityOptions) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.options[workflowID+"|"+typ] = o
}

// cancel asks an activity to end, as a heartbeat's answer does.
func (f *faults) cancel(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.cancels[key]; c != nil {
		c()
	}
}

// activityFaults runs an activity as a worker and a server do together: attempt after attempt, some of which die.
type activityFaults struct {
	interceptor.ActivityInboundInterceptorBase
	f *faults
}

func (a *activityFaults) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	info := activity.GetInfo(ctx)
	key := info.WorkflowExecution.ID + "|" + info.ActivityType.Name
	if info.IsLocalActivity || a.f.real {
		if a.f.roll("before", key) < a.f.rates.Before {
			a.f.hit("died before (plain)")
			return nil, errDied
		}
		out, err := a.Next.ExecuteActivity(ctx, in)
		if err == nil && a.f.lost(info.ActivityType.Name, key) {
			a.f.hit("died after (plain)")
			return nil, errDied
		}
		return out, err
	}
	a.f.mu.Lock()
	o, known := a.f.options[key]
	a.f.mu.Unlock()
	if !known {
		return a.Next.ExecuteActivity(ctx, in)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(a.f.base, stop)()
	me := info.WorkflowExecution.ID + "|" + info.ActivityID
	a.f.mu.Lock()
	a.f.cancels[me] = stop
	a.f.mu.Unlock()
	defer func() {
		a.f.mu.Lock()
		delete(a.f.cancels, me)
		a.f.mu.Unlock()
	}()
	begun := time.Now()
	pause := o.RetryPolicy.InitialInterval
	for {
		out, err := a.attempt(ctx, info.ActivityType.Name, key, o, in)
		if err == nil {
			return out, nil
		}
		var app *temporal.ApplicationError
		if errors.As(err, &app) && app.NonRetryable() || ctx.Err() != nil || temporal.IsCanceledError(err) {
			return nil, err
		}
		if o.ScheduleToCloseTimeout > 0 && time.Since(begun)+pause > o.ScheduleToCloseTimeout {
			return nil, err
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		if pause = time.Duration(float64(pause) * o.RetryPolicy.BackoffCoefficient); pause > o.RetryPolicy.MaximumInterval {
			pause = o.RetryPolicy.MaximumInterval
		}
	}
}

func (a *activityFaults) attempt(ctx context.Context, typ, key string, o workflow.ActivityOptions, in *interceptor.ExecuteActivityInput) (any, error) {
	f := a.f
	noticed := o.HeartbeatTimeout // how long a death goes unnoticed
	ctx, cancel := context.WithTimeout(ctx, o.StartToCloseTimeout)
	defer cancel()
	if f.roll("before", key) < f.rates.Before {
		f.hit("died before")
		return nil, errors.Join(errDied, sleep(ctx, noticed))
	}
	if r := f.roll("midway", key); r < f.rates.Midway {
		f.hit("died midway")
		// Dies somewhere within five seconds, quick effects most of the time done.
		mid, die := context.WithTimeout(ctx, time.Duration(r/f.rates.Midway*r/f.rates.Midway*float64(5*time.Second)))
		defer die()
		_, err := a.Next.ExecuteActivity(mid, in)
		return nil, errors.Join(errDied, err, sleep(ctx, noticed))
	}
	if r := f.roll("zombie", key); r < f.rates.Zombie {
		f.hit("zombie")
		zctx, end := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(r/f.rates.Zombie*float64(10*time.Second)))
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			defer end()
			a.Next.ExecuteActivity(zctx, in)
		}()
		return nil, errors.Join(errDied, sleep(ctx, noticed))
	}
	out, err := a.Next.ExecuteActivity(ctx, in)
	if err == nil && f.lost(typ, key) {
		f.hit("died after")
		return nil, errors.Join(errDied, sleep(ctx, noticed))
	}
	return out, err
}

// cloudRates turns one number into the rates of a cloud's faults.
func cloudRates(x float64) memory.Rates {
	return memory.Rates{Create: 0.3 * x, CreateAfter: 0.15 * x, CreatePartial: 0.15 * x, List: 0.1 * x, Delete: 0.2 * x, DeleteAfter: 0.1 * x, DeleteLost: 0.15 * x,
		Stop: 0.2 * x, Start: 0.2 * x, Dial: 0.1 * x, Preempt: 0.3 * x, Death: 0.1 * x, Lifetime: memory.Duration(20 * time.Minute), MaxPerKey: 8}
}
