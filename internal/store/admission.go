package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Admission is a managed job's wish to bring its cluster up.
type Admission struct {
	JobID    int64
	Priority int
	UserHash string
	Infra    string // what the job names, and AdmissionLimits.Infra is keyed by; "" for any
}

// AdmissionPhase is what a job that was let in does.
type AdmissionPhase string

// Phases of an admitted job.
const (
	PhaseNone      AdmissionPhase = "none"
	PhaseLaunching AdmissionPhase = "launching"
	PhaseRunning   AdmissionPhase = "running"
)

// States of an admission.
const (
	AdmissionWaiting = "waiting"
	AdmissionGranted = "granted"
)

// AdmissionInfo is where a job stands. It is zero if the job never asked, or gave everything back.
type AdmissionInfo struct {
	State    string         // "", waiting or granted
	Phase    AdmissionPhase // while it waits: running if it keeps a place from before
	Position int            // while it waits: about how many come before it, plus 1
	AskedAt  time.Time
	Priority int
	Infra    string
	// How many jobs do so now, in all and of those that named the same infra.
	Launching, Running           int
	InfraLaunching, InfraRunning int
}

// admissionRow is a stored row. phase is "" for a waiting job that holds no place.
type admissionRow struct {
	Admission
	asked   int64
	waiting bool
	phase   AdmissionPhase
	told    bool
}

func (r admissionRow) holds() bool { return r.phase == PhaseRunning }

// querier reads, in a transaction or beside it.
type querier interface {
	row(q string, args ...any) scanner
	collect(q string, args []any, scan func(scanner) error) error
}

type plainReader struct {
	s   *Store
	ctx context.Context
}

func (r plainReader) row(q string, args ...any) scanner { return r.s.row(r.ctx, q, args...) }
func (r plainReader) collect(q string, args []any, scan func(scanner) error) error {
	return r.s.collect(r.ctx, q, args, scan)
}

// AskAdmission asks that a job may bring its cluster up: it is let in at once if there is room and nobody of higher
// precedence waits, else it waits at a position from 1. It may be repeated: the answer is where the job stands now. A
// running job that asks again (its cluster was lost) keeps its place among the running ones while it waits. Others that
// there is room for are let in too; NextAdmissions tells of them.
func (s *Store) AskAdmission(ctx context.Context, a Admission, limits AdmissionLimits) (granted bool, position int, err error) {
	if a.JobID <= 0 {
		return false, 0, errors.New("an admission needs the job's number")
	}
	err = s.update(ctx, true, func(t *txn) error {
		granted, position = false, 0
		old, err := loadAdmission(t, a.JobID)
		if err != nil {
			return err
		}
		row := admissionRow{Admission: a, asked: s.now().UnixMicro(), waiting: true, told: true}
		if old != nil {
			if !old.waiting && old.phase == PhaseLaunching {
				granted = true
				if !old.told {
					_, err = t.exec("UPDATE admissions SET told = 1 WHERE job_id = ?", a.JobID)
				}
				return err
			}
			row.phase = old.phase
			if old.waiting {
				row.asked = old.asked
			}
		}
		if err := t.moveAdmission(old, &row); err != nil {
			return err
		}
		chosen, err := t.grantAdmissions(limits, a.JobID)
		if err != nil {
			return err
		}
		if granted = slices.Contains(chosen, a.JobID); granted {
			return nil
		}
		in, err := loadUse(t)
		if err != nil {
			return err
		}
		queues, err := loadQueues(t)
		if err != nil {
			return err
		}
		position, err = admissionPosition(t, row, in, queues)
		return err
	})
	return granted, position, err
}

// ReleaseAdmission gives back what a job was let in for: with PhaseRunning its launch, with PhaseNone everything, also
// its place among those that wait. It may be repeated.
func (s *Store) ReleaseAdmission(ctx context.Context, jobID int64, phase AdmissionPhase) error {
	if phase != PhaseRunning && phase != PhaseNone {
		return fmt.Errorf("an admission can't be released to %q", phase)
	}
	return s.update(ctx, false, func(t *txn) error {
		old, err := loadAdmission(t, jobID)
		if err != nil || old == nil {
			return err
		}
		if phase == PhaseNone {
			return t.moveAdmission(old, nil)
		}
		if old.waiting || old.phase != PhaseLaunching {
			return nil
		}
		row := *old
		row.phase, row.told = PhaseRunning, true
		return t.moveAdmission(old, &row)
	})
}

// NextAdmissions lets in as many waiting jobs as there is room for. It returns all that were let in and not told so yet
// (see AdmissionsTold), those of calls before among them.
func (s *Store) NextAdmissions(ctx context.Context, limits AdmissionLimits) (ids []int64, err error) {
	// Most calls find nothing: a read spares the writer.
	var one int
	err = s.row(ctx, "SELECT 1 FROM admission_queues UNION ALL SELECT 1 FROM admissions WHERE told = 0 LIMIT 1").Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, s.wrap(err)
	}
	err = s.update(ctx, false, func(t *txn) error {
		ids = nil
		if err := t.collect("SELECT job_id FROM admissions WHERE told = 0 ORDER BY job_id", nil, func(r scanner) error {
			var id int64
			err := r.Scan(&id)
			ids = append(ids, id)
			return err
		}); err != nil {
			return err
		}
		chosen, err := t.grantAdmissions(limits, 0)
		ids = append(ids, chosen...)
		return err
	})
	return ids, err
}

// AdmissionsTold records that jobs know that they were let in.
func (s *Store) AdmissionsTold(ctx context.Context, ids ...int64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.update(ctx, false, func(t *txn) error {
		for _, id := range ids {
			if _, err := t.exec("UPDATE admissions SET told = 1 WHERE job_id = ? AND told = 0", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// AdmissionState tells where a job stands, and how full it is.
func (s *Store) AdmissionState(ctx context.Context, jobID int64) (AdmissionInfo, error) {
	all, err := s.AdmissionStates(ctx, jobID)
	return all[jobID], err
}

// AdmissionStates is AdmissionState of several jobs; those that never asked are left out.
func (s *Store) AdmissionStates(ctx context.Context, jobIDs ...int64) (map[int64]AdmissionInfo, error) {
	q := plainReader{s, ctx}
	out := map[int64]AdmissionInfo{}
	in, err := loadUse(q)
	if err != nil {
		return nil, s.wrap(err)
	}
	queues, err := loadQueues(q)
	if err != nil {
		return nil, s.wrap(err)
	}
	for _, id := range jobIDs {
		row, err := loadAdmission(q, id)
		if err == nil && row != nil {
			out[id], err = row.info(q, in, queues)
		}
		if err != nil {
			return nil, s.wrap(err)
		}
	}
	return out, nil
}

func (row admissionRow) info(q querier, in admissionUse, queues []waitingQueue) (info AdmissionInfo, err error) {
	total, infra := in.total(), in.infra(row.Infra)
	info = AdmissionInfo{State: AdmissionGranted, Phase: row.phase, AskedAt: time.UnixMicro(row.asked).UTC(), Priority: row.Priority, Infra: row.Infra,
		Launching: total.launching, Running: total.running, InfraLaunching: infra.launching, InfraRunning: infra.running}
	if row.waiting {
		info.State = AdmissionWaiting
		info.Position, err = admissionPosition(q, row, in, queues)
	}
	return info, err
}

func loadAdmission(q querier, jobID int64) (*admissionRow, error) {
	r := admissionRow{}
	r.JobID = jobID
	var waiting, told int
	err := q.row("SELECT priority, user_hash, infra, asked, waiting, phase, told FROM admissions WHERE job_id = ?", jobID).
		Scan(&r.Priority, &r.UserHash, &r.Infra, &r.asked, &waiting, &r.phase, &told)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	r.waiting, r.told = waiting == 1, told == 1
	return &r, err
}

func loadUse(q querier) (admissionUse, error) {
	in := admissionUse{}
	err := q.collect("SELECT infra, user_hash, launching, running FROM admission_use", nil, func(r scanner) error {
		var k useKey
		var u use
		err := r.Scan(&k.infra, &k.user, &u.launching, &u.running)
		in[k] = u
		return err
	})
	return in, err
}

func loadQueues(q querier) (out []waitingQueue, err error) {
	err = q.collect("SELECT priority, phase, user_hash, infra, waiting FROM admission_queues", nil, func(r scanner) error {
		var g waitingQueue
		var phase AdmissionPhase
		err := r.Scan(&g.priority, &phase, &g.user, &g.infra, &g.count)
		g.holds = phase == PhaseRunning
		out = append(out, g)
		return err
	})
	return out, err
}

// moveAdmission replaces a row (nil: none) and keeps the counts right.
func (t *txn) moveAdmission(old, row *admissionRow) error {
	t.touch(AdmissionTopic)
	if old != nil {
		if err := t.countAdmission(*old, -1); err != nil {
			return err
		}
	}
	if row == nil {
		_, err := t.exec("DELETE FROM admissions WHERE job_id = ?", old.JobID)
		return err
	}
	if err := t.countAdmission(*row, 1); err != nil {
		return err
	}
	waiting, told := 0, 0
	if row.waiting {
		waiting = 1
	}
	if row.told {
		told = 1
	}
	_, err := t.exec(`INSERT INTO admissions (job_id, priority, user_hash, infra, asked, waiting, phase, told) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (job_id) DO UPDATE SET priority = excluded.priority, user_hash = excluded.user_hash, infra = excluded.infra, asked = excluded.asked,
		waiting = excluded.waiting, phase = excluded.phase, told = excluded.told`,
		row.JobID, row.Priority, row.UserHash, row.Infra, row.asked, waiting, string(row.phase), told)
	return err
}

func (t *txn) countAdmission(r admissionRow, d int) error {
	if r.waiting {
		if _, err := t.exec(`INSERT INTO admission_queues (priority, phase, user_hash, infra, waiting) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (priority, phase, user_hash, infra) DO UPDATE SET waiting = admission_queues.waiting + excluded.waiting`,
			r.Priority, string(r.phase), r.UserHash, r.Infra, d); err != nil {
			return err
		}
		if d < 0 {
			if _, err := t.exec("DELETE FROM admission_queues WHERE priority = ? AND phase = ? AND user_hash = ? AND infra = ? AND waiting <= 0",
				r.Priority, string(r.phase), r.UserHash, r.Infra); err != nil {
				return err
			}
		}
	}
	var u use
	switch r.phase {
	case PhaseLaunching:
		u.launching = d
	case PhaseRunning:
		u.running = d
	default:
		return nil
	}
	if _, err := t.exec(`INSERT INTO admission_use (infra, user_hash, launching, running) VALUES (?, ?, ?, ?)
		ON CONFLICT (infra, user_hash) DO UPDATE SET launching = admission_use.launching + excluded.launching, running = admission_use.running + excluded.running`,
		r.Infra, r.UserHash, u.launching, u.running); err != nil || d > 0 {
		return err
	}
	_, err := t.exec("DELETE FROM admission_use WHERE infra = ? AND user_hash = ? AND launching = 0 AND running = 0", r.Infra, r.UserHash)
	return err
}

// grantAdmissions lets in those that admit chooses; asker hears of it from its own call.
func (t *txn) grantAdmissions(limits AdmissionLimits, asker int64) ([]int64, error) {
	in, err := loadUse(t)
	if err != nil {
		return nil, err
	}
	launch, enter := in.total().room(limits.Launching, limits.Running)
	if launch == 0 {
		return nil, nil
	}
	queues, err := loadQueues(t)
	if err != nil {
		return nil, err
	}
	for i := range queues {
		q := &queues[i]
		most := min(launch, q.count)
		if !q.holds {
			most = min(most, enter)
		}
		if most == 0 {
			continue
		}
		err := t.collect(`SELECT job_id FROM admissions WHERE waiting = 1 AND priority = ? AND phase = ? AND user_hash = ? AND infra = ?
			ORDER BY job_id LIMIT ?`, []any{q.priority, string(q.phase()), q.user, q.infra, most}, func(r scanner) error {
			var id int64
			err := r.Scan(&id)
			q.ids = append(q.ids, id)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	chosen := admit(queues, in, limits)
	for _, id := range chosen {
		old, err := loadAdmission(t, id)
		if err != nil {
			return nil, err
		}
		row := *old
		row.waiting, row.phase, row.told = false, PhaseLaunching, id == asker
		if err := t.moveAdmission(old, &row); err != nil {
			return nil, err
		}
	}
	return chosen, nil
}

func (q waitingQueue) phase() AdmissionPhase {
	if q.holds {
		return PhaseRunning
	}
	return ""
}

// countTail is up to how many jobs behind one are counted, to spare counting those before it.
const countTail = 1000

// admissionPosition is about how many come before a waiting job, plus 1.
func admissionPosition(q querier, r admissionRow, in admissionUse, queues []waitingQueue) (int, error) {
	own := 0
	for _, g := range queues {
		if g.priority != r.Priority || g.holds != r.holds() || g.user != r.UserHash {
			continue
		}
		const same = "FROM admissions WHERE waiting = 1 AND priority = ? AND phase = ? AND user_hash = ? AND infra = ?"
		args := []any{g.priority, string(g.phase()), g.user, g.infra, r.JobID}
		// Mostly it is one of the newest that is asked for: few stand behind it.
		var n int
		if err := q.row("SELECT count(*) FROM (SELECT 1 "+same+" AND job_id > ? LIMIT 1000)", args...).Scan(&n); err != nil {
			return 0, err
		}
		if n < countTail {
			if n = g.count - n; g.infra == r.Infra {
				n--
			}
		} else if err := q.row("SELECT count(*) "+same+" AND job_id < ?", args...).Scan(&n); err != nil {
			return 0, err
		}
		own += n
	}
	return 1 + ahead(queues, in, r.Priority, r.holds(), r.UserHash, own), nil
}
