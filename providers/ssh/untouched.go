package ssh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/agent/sharedhost"
)

// untouched answers for a host that has nothing of ours.
func (l *link) untouched(ctx context.Context, r *ready, verb string) (sharedhost.Reply, error) {
	switch verb {
	case sharedhost.VerbList:
		return sharedhost.Reply{}, nil
	case sharedhost.VerbProbe:
		i, err := l.hardware(ctx, r)
		return sharedhost.Reply{Info: i}, err
	case sharedhost.VerbClean:
		return sharedhost.Reply{}, l.wipe(ctx, r)
	}
	return sharedhost.Reply{}, &sharedhost.Error{Kind: sharedhost.KindNotFound, Msg: "nothing of ours is there"}
}

// hardware asks a host what it has by its shell alone.
func (l *link) hardware(ctx context.Context, r *ready) (*sharedhost.Info, error) {
	facts, err := l.facts(ctx, hardware, strings.Repeat("0", 16))
	if err != nil {
		return nil, err
	}
	var m claims.Machine
	m.CPUs, _ = strconv.ParseFloat(first(facts["cpus"]), 64)
	kb, _ := strconv.ParseFloat(first(facts["memory"]), 64)
	m.MemoryGB = math.Floor(kb/(1<<20)*10) / 10
	if m.CPUs <= 0 || m.MemoryGB <= 0 {
		return nil, errors.New("its /proc does not tell its CPUs and memory")
	}
	i := &sharedhost.Info{Arch: r.arch, CPUs: m.CPUs, MemoryGB: m.MemoryGB, GPUError: first(facts["gpuerror"]), Untouched: true}
	if lines := facts["gpu"]; len(lines) > 0 {
		found, err := gpus.Parse(strings.Join(lines, "\n"))
		if err != nil {
			i.GPUError = err.Error()
		}
		m.GPUs = found
		for _, g := range found {
			i.GPUs = append(i.GPUs, sharedhost.GPU(g))
		}
	}
	// What others hold there; whether all of it still counts only our program can tell.
	var held []claims.Claim
	for _, line := range facts["claim"] {
		var c claims.Claim
		if json.Unmarshal([]byte(line), &c) == nil {
			held = append(held, c)
		}
	}
	free := claims.Free(m, held)
	i.FreeCPUs, i.FreeMemoryGB = free.CPUs, free.MemoryGB
	for _, g := range free.GPUs {
		i.FreeGPUs = append(i.FreeGPUs, g.ID)
	}
	return i, nil
}

// wipe removes folders of ours in which no node ever was.
func (l *link) wipe(ctx context.Context, r *ready) error {
	if len(r.dirs) == 0 {
		return nil
	}
	var script strings.Builder
	script.WriteString(`echo; e=$( { `)
	for _, d := range r.dirs {
		if strings.ContainsAny(d, "'\"$`\\\n!") {
			return fmt.Errorf("the folder %s has a name that is not safe to remove by a script", d)
		}
		fmt.Fprintf(&script, `[ -d "%s/nodes" ] || rm -rf "%s"; `, d, d)
	}
	script.WriteString(`} 2>&1 ); echo "<<skyloom NONCE"; echo "said=$(echo $e)"; echo "skyloom NONCE>>"`)
	facts, err := l.facts(ctx, script.String(), strings.Repeat("0", 16))
	if err != nil {
		return err
	}
	if said := first(facts["said"]); said != "" {
		return fmt.Errorf("not everything could be removed: %s", said)
	}
	return nil
}
