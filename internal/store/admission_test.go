package store

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// waiter and naive are the order of admission as one would say it: again and again, of all who wait and for whom there is
// room, the one of the highest precedence.
type waiter struct {
	id          int64
	priority    int
	holds       bool
	user, infra string
}

func naive(ws []waiter, in admissionUse, l AdmissionLimits) (out []int64) {
	in2 := admissionUse{}
	for k, v := range in {
		in2[k] = v
	}
	ws = slices.Clone(ws)
	for {
		best := -1
		users := in2.users()
		for i, w := range ws {
			fits := true
			for _, c := range []struct {
				u   use
				lim InfraLimit
			}{{in2.total(), InfraLimit{l.Launching, l.Running}}, {in2.infra(w.infra), l.Infra[w.infra]}} {
				fits = fits && (c.lim.Launching == 0 || c.u.launching < c.lim.Launching) && (w.holds || c.lim.Running == 0 || c.u.launching+c.u.running < c.lim.Running)
			}
			if !fits {
				continue
			}
			if best >= 0 {
				b := ws[best]
				switch {
				case w.priority != b.priority:
					if w.priority < b.priority {
						continue
					}
				case w.holds != b.holds:
					if b.holds {
						continue
					}
				case users[w.user] != users[b.user]:
					if users[w.user] > users[b.user] {
						continue
					}
				case w.id > b.id:
					continue
				}
			}
			best = i
		}
		if best < 0 {
			return out
		}
		w := ws[best]
		ws = slices.Delete(ws, best, best+1)
		k := useKey{w.infra, w.user}
		u := in2[k]
		u.launching++
		if w.holds {
			u.running--
		}
		in2[k] = u
		out = append(out, w.id)
	}
}

func drawLimits(t *rapid.T) AdmissionLimits {
	n := func(name string) int { return rapid.IntRange(0, 6).Draw(t, name) }
	return AdmissionLimits{n("launching"), n("running") * 2, map[string]InfraLimit{"aws": {n("aws launching"), n("aws running")}}}
}

func TestAdmit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := admissionUse{}
		for range rapid.IntRange(0, 5).Draw(t, "in") {
			k := useKey{rapid.SampledFrom([]string{"", "aws"}).Draw(t, "infra"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "user")}
			in[k] = use{rapid.IntRange(0, 3).Draw(t, "l"), rapid.IntRange(0, 3).Draw(t, "r")}
		}
		var ws []waiter
		groups := map[waiter]*waitingQueue{}
		for i := range rapid.IntRange(0, 25).Draw(t, "n") {
			w := waiter{priority: rapid.IntRange(-1, 1).Draw(t, "prio"), user: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "user"),
				infra: rapid.SampledFrom([]string{"", "aws"}).Draw(t, "infra")}
			w.holds = rapid.IntRange(0, 3).Draw(t, "holds") == 0
			if w.holds { // its place is counted
				u := in[useKey{w.infra, w.user}]
				u.running++
				in[useKey{w.infra, w.user}] = u
			}
			if groups[w] == nil {
				groups[w] = &waitingQueue{priority: w.priority, holds: w.holds, user: w.user, infra: w.infra}
			}
			groups[w].ids = append(groups[w].ids, int64(i+1))
			groups[w].count++
			w.id = int64(i + 1)
			ws = append(ws, w)
		}
		l := drawLimits(t)
		var queues []waitingQueue
		for _, g := range groups {
			queues = append(queues, *g)
		}
		got, want := admit(queues, in, l), naive(ws, in, l)
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
		// Where nothing is full, what is said to be ahead is right, but for ties between users.
		order := naive(ws, in, AdmissionLimits{})
		for place, id := range order {
			w := ws[id-1]
			own, ties := 0, map[string]bool{}
			for _, o := range ws {
				if o.priority == w.priority && o.holds == w.holds {
					if o.user != w.user {
						ties[o.user] = true
					} else if o.id < w.id {
						own++
					}
				}
			}
			n := ahead(queues, in, w.priority, w.holds, w.user, own)
			// Those let in before with a higher priority change how many a user has: near enough is what is asked for.
			slack := len(ties)
			if w.holds {
				slack *= len(ws)
			}
			if w.priority == 1 && (n > place || n < place-slack) {
				t.Fatalf("job %d: %d ahead, is at %d of %v", id, n, place, order)
			}
			if n < 0 || n >= len(ws) {
				t.Fatalf("job %d: %d ahead of %d", id, n, len(ws))
			}
		}
	})
}

func TestAdmissionOrder(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	l := AdmissionLimits{Launching: 2, Running: 4, Infra: map[string]InfraLimit{"aws": {Launching: 1}}}
	ask := func(id int64, prio int, user, infra string, granted bool, position int) {
		t.Helper()
		g, p, err := s.AskAdmission(ctx, Admission{id, prio, user, infra}, l)
		if err != nil || g != granted || p != position {
			t.Errorf("job %d: %v, %d, %v; want %v, %d", id, g, p, err, granted, position)
		}
	}
	next := func(want ...int64) {
		t.Helper()
		got, err := s.NextAdmissions(ctx, l)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("next: %v %v, want %v", got, err, want)
		}
	}
	ask(1, 0, "a", "aws", true, 0)
	ask(2, 0, "a", "aws", false, 1)
	ask(3, 0, "a", "", true, 0) // what waits for aws lets it pass
	ask(4, 0, "a", "", false, 2)
	ask(5, 0, "b", "", false, 1) // a user with fewer jobs
	ask(6, 5, "a", "", false, 1)
	ask(6, 5, "a", "", false, 1)
	ask(1, 0, "a", "aws", true, 0)
	next()
	why := func(id int64, want string) {
		t.Helper()
		i, err := s.AdmissionState(ctx, id)
		if got := i.Why(l); err != nil || got != want {
			t.Errorf("job %d: %q %v, want %q", id, got, err, want)
		}
	}
	why(1, "")
	why(2, "2 of 2 launches are under way; 1 of 1 launches on aws are under way; 2 jobs are ahead of it")
	why(6, "2 of 2 launches are under way")
	why(99, "")
	must(t, s.ReleaseAdmission(ctx, 3, PhaseRunning))
	must(t, s.ReleaseAdmission(ctx, 3, PhaseRunning))
	next(6)
	next(6) // until it was told
	must(t, s.AdmissionsTold(ctx, 6))
	next()
	must(t, s.ReleaseAdmission(ctx, 6, PhaseNone))
	next(5)
	ask(5, 0, "b", "", true, 0) // it asked, and so it knows
	next()
	must(t, s.ReleaseAdmission(ctx, 1, PhaseRunning))
	next(2) // aws has room again: 1 and 3 run, 5 and 2 launch
	must(t, s.AdmissionsTold(ctx, 2))
	must(t, s.ReleaseAdmission(ctx, 2, PhaseRunning))
	next() // four run
	why(4, "4 of 4 jobs are running")
	ask(1, 0, "a", "aws", true, 0) // its cluster was lost: it has its place
	must(t, s.ReleaseAdmission(ctx, 1, PhaseNone))
	next(4)
	st, err := s.AdmissionState(ctx, 4)
	if err != nil || st.State != AdmissionGranted || st.Phase != PhaseLaunching || st.Launching != 2 || st.Running != 2 || st.InfraRunning != 1 {
		t.Errorf("%+v %v", st, err)
	}
	if err := s.ReleaseAdmission(ctx, 4, PhaseLaunching); err == nil {
		t.Error("released upwards")
	}
}

// TestAdmissionKeepsCount: whatever is asked and given back, in whatever order, the limits hold, nobody who could go on
// is kept waiting, and the counts agree with the rows.
func TestAdmissionKeepsCount(t *testing.T) {
	s, _ := open(t)
	rapid.Check(t, func(rt *rapid.T) {
		ctx := rt.Context()
		for id := range 12 {
			must(t, s.ReleaseAdmission(ctx, int64(id+1), PhaseNone))
		}
		l := drawLimits(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"ask": func(rt *rapid.T) {
				a := Admission{rapid.Int64Range(1, 12).Draw(rt, "id"), rapid.IntRange(0, 1).Draw(rt, "prio"), rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "user"), rapid.SampledFrom([]string{"", "aws"}).Draw(rt, "infra")}
				granted, pos, err := s.AskAdmission(ctx, a, l)
				st, serr := s.AdmissionState(ctx, a.JobID)
				if err != nil || serr != nil || granted != (st.State == AdmissionGranted) || granted != (pos == 0) || (granted && st.Phase != PhaseLaunching) {
					rt.Fatalf("%v %d %+v %v %v", granted, pos, st, err, serr)
				}
			},
			"release": func(rt *rapid.T) {
				if err := s.ReleaseAdmission(ctx, rapid.Int64Range(1, 12).Draw(rt, "id"), rapid.SampledFrom([]AdmissionPhase{PhaseRunning, PhaseNone}).Draw(rt, "phase")); err != nil {
					rt.Fatal(err)
				}
			},
			"next": func(rt *rapid.T) {
				ids, err := s.NextAdmissions(ctx, l)
				if err != nil || s.AdmissionsTold(ctx, ids...) != nil {
					rt.Fatal(err)
				}
				if again, err := s.NextAdmissions(ctx, l); err != nil || len(again) > 0 {
					rt.Fatalf("%v %v", again, err)
				}
			},
			"": func(rt *rapid.T) {
				in := admissionUse{}
				queues := map[string]int{}
				q := plainReader{s, ctx}
				err := q.collect("SELECT job_id, priority, user_hash, infra, waiting, phase FROM admissions", nil, func(r scanner) error {
					var a Admission
					var waiting int
					var phase AdmissionPhase
					if err := r.Scan(&a.JobID, &a.Priority, &a.UserHash, &a.Infra, &waiting, &phase); err != nil {
						return err
					}
					if waiting == 1 {
						queues[fmt.Sprint(a.Priority, phase == PhaseRunning, a.UserHash, "/", a.Infra)]++
					}
					k := useKey{a.Infra, a.UserHash}
					u := in[k]
					switch phase {
					case PhaseLaunching:
						u.launching++
					case PhaseRunning:
						u.running++
					default:
						return nil
					}
					in[k] = u
					return nil
				})
				if err != nil {
					rt.Fatal(err)
				}
				counted, err := loadUse(q)
				if err != nil || fmt.Sprint(counted) != fmt.Sprint(in) {
					rt.Fatalf("counted %v, are %v (%v)", counted, in, err)
				}
				qs, err := loadQueues(q)
				for _, g := range qs {
					k := fmt.Sprint(g.priority, g.holds, g.user, "/", g.infra)
					if queues[k] != g.count {
						rt.Fatalf("%s: counted %d, are %d", k, g.count, queues[k])
					}
					delete(queues, k)
				}
				if err != nil || len(queues) > 0 {
					rt.Fatal(queues, err)
				}
				if tot := in.total(); l.Launching > 0 && tot.launching > l.Launching {
					rt.Fatalf("%+v with %+v", tot, l)
				} else if l.Running > 0 && tot.launching+tot.running > l.Running {
					rt.Fatalf("%+v with %+v", tot, l)
				}
			},
		})
	})
}

// BenchmarkAdmission is a job's whole way through admission while many others wait.
func BenchmarkAdmission(b *testing.B) {
	s := benchStore(b)
	l := AdmissionLimits{Launching: 8, Running: 2000}
	for i := range 10000 {
		_, _, err := s.AskAdmission(b.Context(), Admission{int64(i + 1), 0, fmt.Sprint("u", i%5), ""}, l)
		must(b, err)
	}
	id := int64(20000)
	b.ResetTimer()
	start := cpu()
	for b.Loop() {
		id++
		_, _, err := s.AskAdmission(b.Context(), Admission{id, 0, "u1", ""}, l)
		must(b, err)
		must(b, s.ReleaseAdmission(b.Context(), id, PhaseNone))
	}
	b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e3, "cpu-us/op")
}
