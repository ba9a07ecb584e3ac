package agent

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// batchPush sends what the elements of arrays print on this node to a reader of events: at most once a period, only what is new, and
// of many elements together.
type batchPush struct {
	a     *Agent
	every time.Duration
	look  time.Duration
	jobs  map[int64]*pushedJob
	kept  agentapi.KeptOutput

	next time.Time // no turn begins before
	left int64     // of the turn under way; 0: there is none
}

// pushedJob is how far the output of one element was sent.
type pushedJob struct {
	at   int64
	done bool // nothing more comes
}

// elementPart is the part of an element's job on this node.
type elementPart struct {
	rec  partRecord
	e    agentapi.Element
	over bool
}

func (a *Agent) newBatchPush(q agentapi.LogFollow) *batchPush {
	every := max(q.Every, time.Second)
	return &batchPush{a: a, every: every, look: min(pushLook, every), jobs: map[int64]*pushedJob{}, kept: q.Kept}
}

func (p *batchPush) looks() time.Duration { return p.look }

// push writes the next bytes: of one batch. Files that can't be read are left to those who ask for the logs themselves.
func (p *batchPush) push(enc *json.Encoder) (sent bool, err error) {
	if p.left <= 0 && time.Now().Before(p.next) {
		return false, nil
	}
	var out *agentapi.BatchBytes
	for _, part := range p.parts() {
		if out != nil && (out.Batch != part.e.Batch || len(out.Data) >= pushChunk) {
			break
		}
		j := p.jobs[part.rec.JobID]
		data, err := readOn(p.a.logFile(&part.rec, phaseRun), j.at, pushChunk-int64(length(out)))
		if err != nil {
			p.a.log.Warn("an element's output was not pushed", "batch", part.e.Batch, "element", part.e.Index, "error", err)
			continue
		}
		if len(data) == 0 {
			j.done = part.over
			continue
		}
		if out == nil {
			out = &agentapi.BatchBytes{Batch: part.e.Batch}
		}
		out.Pieces = append(out.Pieces, agentapi.OutputPiece{Element: part.e.Index, Rank: part.rec.Rank, Offset: j.at, Len: int64(len(data))})
		out.Data = append(out.Data, data...)
		j.at += int64(len(data))
	}
	if out == nil {
		p.left = 0
		return false, nil
	}
	if p.left <= 0 { // a turn begins
		p.left, p.next = pushPeriod, time.Now().Add(p.every)
	}
	p.left -= int64(len(out.Data))
	return true, enc.Encode(agentapi.Event{Type: agentapi.EventLog, Time: p.a.now(), Output: out})
}

func length(out *agentapi.BatchBytes) int {
	if out == nil {
		return 0
	}
	return len(out.Data)
}

// parts are those that may have printed something new, by batch and job. Whether one is over is asked before its file is read.
func (p *batchPush) parts() []elementPart {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	var out []elementPart
	for id, part := range p.a.parts {
		if j := p.jobs[id]; j != nil && j.done || !part.HasRun {
			continue
		}
		e, ok := elementOf(part.LogDir)
		if !ok {
			continue
		}
		if p.jobs[id] == nil {
			p.jobs[id] = &pushedJob{at: p.kept[e]}
		}
		out = append(out, elementPart{part.partRecord, e, part.over()})
	}
	if len(p.jobs) > 2*len(p.a.parts)+100 { // most were forgotten
		for id := range p.jobs {
			if p.a.parts[id] == nil {
				delete(p.jobs, id)
			}
		}
	}
	slices.SortFunc(out, func(a, b elementPart) int {
		if a.e.Batch != b.e.Batch {
			return int(a.e.Batch - b.e.Batch)
		}
		return int(a.rec.JobID - b.rec.JobID)
	})
	return out
}

// elementOf tells which element of which batch has its logs in a folder, as batchLogs names them.
func elementOf(logDir string) (e agentapi.Element, ok bool) {
	rest, ok := strings.CutPrefix(filepath.ToSlash(logDir), filepath.ToSlash(filepath.Dir(batchLogs(0)))+"/")
	batch, element, cut := strings.Cut(rest, "/")
	if !ok || !cut {
		return e, false
	}
	var err1, err2 error
	e.Batch, err1 = strconv.ParseInt(batch, 10, 64)
	e.Index, err2 = strconv.Atoi(element)
	return e, err1 == nil && err2 == nil
}
