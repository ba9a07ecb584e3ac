package agent

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// Bounds of what is pushed of a log, in bytes: at once, so that events are not held up, and within one period.
const (
	pushChunk  = 256 << 10
	pushPeriod = 16 << 20
)

// pushLook is how often the files are looked at while a reader of events wants a log pushed.
const pushLook = time.Second

// pusher sends output to a reader of events.
type pusher interface {
	// push writes the next bytes and says whether there were any. An error means that the reader is gone.
	push(enc *json.Encoder) (sent bool, err error)
	// looks is how often it wants to be asked.
	looks() time.Duration
}

// pusherOf makes what a reader of events asked for; nil: nothing.
func (a *Agent) pusherOf(q agentapi.LogFollow) pusher {
	switch {
	case q.Batches:
		return a.newBatchPush(q)
	case q.JobID > 0:
		return a.newLogPush(q)
	}
	return nil
}

// logPush sends what a job prints to a reader of events: at most once a period, and only what is new.
type logPush struct {
	a     *Agent
	id    int64
	at    map[string]int64 // by phase: what the reader has
	every time.Duration
	look  time.Duration

	next time.Time // no turn begins before
	left int64     // of the turn under way; 0: there is none
}

func (a *Agent) newLogPush(q agentapi.LogFollow) *logPush {
	p := &logPush{a: a, id: q.JobID, at: map[string]int64{}, every: max(q.Every, time.Second)}
	p.look = min(pushLook, p.every)
	for phase, off := range q.Offsets {
		p.at[phase] = off
	}
	return p
}

func (p *logPush) looks() time.Duration { return p.look }

// push writes the next bytes. Files that can't be read are left to those who ask for the log itself.
func (p *logPush) push(enc *json.Encoder) (sent bool, err error) {
	if p.left <= 0 && time.Now().Before(p.next) {
		return false, nil
	}
	v, known := p.a.viewLog(p.id)
	if !known || v.part == nil {
		return false, nil
	}
	for _, phase := range []string{phaseSetup, phaseRun} {
		if !has(v.part, phase) {
			continue
		}
		data, err := readOn(p.a.logFile(v.part, phase), p.at[phase], pushChunk)
		if err != nil {
			p.a.log.Warn("a log was not pushed", "job", p.id, "error", err)
			continue
		}
		if len(data) == 0 {
			continue
		}
		if p.left <= 0 { // a turn begins
			p.left, p.next = pushPeriod, time.Now().Add(p.every)
		}
		p.left -= int64(len(data))
		ev := agentapi.Event{Type: agentapi.EventLog, Time: p.a.now(), Log: &agentapi.LogBytes{JobID: p.id, Phase: phase, Offset: p.at[phase], Data: data}}
		p.at[phase] += int64(len(data))
		return true, enc.Encode(ev)
	}
	p.left = 0 // there is nothing more to send
	return false, nil
}

// readOn reads what stands in a file from an offset on, at most so many bytes; nothing if it is not there.
func readOn(path string, off, most int64) ([]byte, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && fi.Size() <= off {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, min(fi.Size()-off, most))
	n, err := f.ReadAt(b, off)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}
