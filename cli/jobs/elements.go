package jobs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/jobtable"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// ElementsOptions is `sky jobs queue ID --elements`.
type ElementsOptions struct {
	JobID    int64
	Statuses []api.ManagedStatus
	// First and Last bound the index; Last below 0: to the end.
	First, Last int
	Limit       int // 0: all
	Output      string
}

// elementsOf reads what `sky jobs queue --elements` was told besides.
func elementsOf(o *QueueOptions, elements string, words []string) (*ElementsOptions, error) {
	if len(words) != 1 {
		return nil, session.Usagef("exactly one array: sky jobs queue JOB_ID --elements")
	}
	ids, err := api.ParseIDs(words[0])
	if err != nil || len(ids) != 1 {
		return nil, session.Usagef("%q is no job id; a job id is a number, see: sky jobs queue", words[0])
	}
	e := &ElementsOptions{JobID: ids[0], Statuses: o.Statuses, Last: -1, Limit: o.Limit, Output: o.Output}
	if o.All {
		e.Limit = 0
	}
	if elements == allElements {
		return e, nil
	}
	e.First, e.Last, err = elementRange("--elements", elements)
	return e, err
}

// elementRange reads 17, 0-99 or 100-. A last below 0: to the end.
func elementRange(flag, text string) (first, last int, err error) {
	a, b, ranged := strings.Cut(strings.TrimSpace(text), "-")
	last = -1
	if first, err = strconv.Atoi(a); err == nil && ranged && b != "" {
		if last, err = strconv.Atoi(b); err == nil && last < first {
			err = strconv.ErrRange
		}
	} else if !ranged {
		last = first
	}
	if err != nil || first < 0 {
		return 0, 0, session.Usagef("%s: %q is no element or range; write 17, 0-99 or 100-", flag, text)
	}
	return first, last, nil
}

// rangeText is a range as elementRange reads it.
func rangeText(r [2]int) string {
	if r[1] < 0 {
		return fmt.Sprintf("%d-", r[0])
	}
	return fmt.Sprintf("%d-%d", r[0], r[1])
}

// Elements shows the elements of an array.
func Elements(ctx context.Context, s *session.Session, o *ElementsOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	list, err := c.Elements(ctx, o.JobID, api.ElementFilter{Statuses: o.Statuses, First: o.First, Last: o.Last, Limit: o.Limit})
	if err != nil {
		return notFound(s, err)
	}
	if o.Output == "json" {
		if list.Elements == nil {
			list.Elements = []api.ArrayElement{}
		}
		return s.PrintJSON(list.Elements)
	}
	io := s.IO
	io.Printf("%s\n%s\n", io.OutStyle(session.Bold, fmt.Sprintf("Elements of managed job %d", o.JobID)), jobtable.ElementCounts(list.Counts))
	if len(list.Elements) == 0 {
		io.Printf("No such elements.\n")
		return nil
	}
	values := false
	for _, e := range list.Elements {
		values = values || len(e.Values) > 0
	}
	head := []string{"INDEX"}
	if values {
		head = append(head, "VALUES")
	}
	t := table.New(append(head, "STATUS", "ATTEMPT", "STARTED", "DURATION", "CLUSTER", "DETAILS")...)
	for _, e := range list.Elements {
		cells := []any{e.Index}
		if values {
			var vs []string
			for _, k := range slices.Sorted(maps.Keys(e.Values)) {
				vs = append(vs, k+"="+e.Values[k])
			}
			cells = append(cells, strings.Join(vs, " "))
		}
		took := ""
		if e.StartAt != nil {
			end := s.Now()
			if e.EndAt != nil {
				end = *e.EndAt
			}
			took = table.Span(end.Sub(*e.StartAt))
		}
		t.Row(append(cells, jobtable.Status(io, e.Status), e.Attempt, table.AgoPtr(s.Now(), e.StartAt), took, e.Cluster, e.Reason)...)
	}
	if err := t.Print(io.Out); err != nil {
		return err
	}
	if list.Next != nil {
		io.Printf("\nMore of them: sky jobs queue %d --elements=%d-\n", o.JobID, *list.Next)
	}
	return nil
}
