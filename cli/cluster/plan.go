package cluster

import (
	"fmt"
	"io"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// PrintPlan writes the considered-resources table and what goes with it.
func PrintPlan(s *session.Session, w io.Writer, p *api.Plan, onOut bool) error {
	style := s.IO.ErrStyle
	if onOut {
		style = s.IO.OutStyle
	}
	for _, n := range p.Notes {
		fmt.Fprintln(w, style(session.Yellow, n))
	}
	if len(p.Candidates) == 0 {
		return nil
	}
	nodes := max(p.NumNodes, 1)
	fmt.Fprintf(w, "Considered resources (%d node%s):\n", nodes, plural(nodes))
	t := table.New("INFRA", "INSTANCE", "vCPUs", "Mem(GB)", "GPUS", "COST ($)", "CHOSEN")
	t.Style = func(h string) string { return style(session.Bold, h) }
	for _, c := range p.Candidates {
		instance := c.InstanceType
		if instance == "" {
			instance = "-"
		}
		if c.Spot {
			instance += "[Spot]"
		}
		chosen := " "
		if c.Chosen {
			chosen = style(session.Green, "✔")
		}
		t.Row(c.Infra, instance, table.Number(c.CPUs), table.Number(c.MemoryGB), c.Accelerators, table.Dollars(c.PricePerHour), chosen)
	}
	return t.Print(w)
}
