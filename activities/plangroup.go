package activities

import (
	"context"
	"fmt"
	"slices"

	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/recovery"
)

// PlanGroupInput asks for a place that all tasks of a group can run in.
type PlanGroupInput struct {
	Tasks []string `json:"tasks"` // YAML of those that run something
	// Full are places that had no room for one of them.
	Full []recovery.Place `json:"full,omitempty"`
}

// PlanGroupOutput is the recorded decision. Home is nil if no place is left, or none is common: then Split is set, unless one of the
// tasks fits nowhere at all.
type PlanGroupOutput struct {
	Home  *optimizer.Common `json:"home,omitempty"`
	Split bool              `json:"split,omitempty"`
	Among int               `json:"among,omitempty"` // places that are common, full or not
}

// PlanGroup chooses the cheapest place that is common to the tasks of a group. It changes nothing.
func (a *Activities) PlanGroup(ctx context.Context, in PlanGroupInput) (PlanGroupOutput, error) {
	var members []optimizer.Member
	for _, text := range in.Tasks {
		t, e := ParseTask(text)
		if e != nil {
			return PlanGroupOutput{}, nil // its own plan says so
		}
		nodes := max(t.NumNodes, 1)
		rank, err := a.ranking(ctx, t, nodes)
		if err != nil {
			return PlanGroupOutput{}, fmt.Errorf("the infra could not be asked what it offers: %w", err)
		}
		res, err := optimizer.Rank(rank)
		if err != nil {
			return PlanGroupOutput{}, nil // its own plan says so
		}
		members = append(members, optimizer.Member{NumNodes: nodes, Choices: res.Choices})
	}
	common := optimizer.CommonPlaces(members)
	out := PlanGroupOutput{Among: len(common), Split: len(common) == 0}
	for _, c := range common {
		if !slices.Contains(in.Full, c.Place) {
			out.Home = &c
			break
		}
	}
	return out, nil
}

// beside is the ranking of a task that belongs to a group: of where the group goes. The note says where that is.
func (a *Activities) beside(ctx context.Context, group []string, in optimizer.Input, alone optimizer.Result) (res optimizer.Result, note string, err error) {
	out, err := a.PlanGroup(ctx, PlanGroupInput{Tasks: group})
	switch {
	case err != nil:
		return alone, "", err
	case out.Split:
		return alone, noCommonPlace, nil
	case out.Home == nil:
		return alone, "", nil
	}
	for _, p := range places(alone.Choices) {
		if p != out.Home.Place {
			in.Blocked = append(in.Blocked, optimizer.Block{Cloud: p.Cloud, Region: p.Region})
		}
	}
	res, err = optimizer.Rank(in)
	return res, fmt.Sprintf("all tasks of the group go to %s: $%.2f per hour in all", out.Home.Place, out.Home.PricePerHour), err
}

const noCommonPlace = "no infra and region can hold all tasks of the group: each goes where it is cheapest, and they may not reach each other"
