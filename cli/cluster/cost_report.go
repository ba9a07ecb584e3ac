package cluster

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// shownCosts is how many rows stand in the table without -a.
const shownCosts = 5

// CostReportOptions is `sky cost-report`.
type CostReportOptions struct {
	All    bool
	Days   int
	Output string
}

// NewCostReport makes `sky cost-report`.
func NewCostReport(s *session.Session, run func(context.Context, *session.Session, *CostReportOptions) error) *cobra.Command {
	o := &CostReportOptions{}
	if run == nil {
		run = CostReport
	}
	cmd := &cobra.Command{
		Use:   "cost-report",
		Short: "Show what clusters have cost",
		Long: `Show what clusters have cost, removed ones too: the time their nodes were up, at the
price of that time. Disks, traffic and stopped machines are not in it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Days < 0 {
				return session.Usagef("--days must be 0 or more")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.All, "all", "a", false, "all clusters, not only the newest 5")
	fs.IntVar(&o.Days, "days", 30, "clusters of the last `N` days; 0 is all of history")
	flags.Output(fs, &o.Output)
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return session.Usagef("%s takes no arguments (got %q)", cmd.CommandPath(), args[0])
	}
	return nil
}

// CostReport shows costs.
func CostReport(ctx context.Context, s *session.Session, o *CostReportOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	rows, err := c.CostReport(ctx, o.Days)
	if err != nil {
		return err
	}
	for i := range rows {
		if rows[i].Status == "" {
			rows[i].Status = string(api.ClusterTerminated)
		}
	}
	sortCosts(rows)
	if o.Output == "json" {
		if rows == nil {
			rows = []api.CostRow{}
		}
		return s.PrintJSON(rows)
	}
	if len(rows) == 0 {
		s.IO.Printf("No clusters in that time.\n")
		return nil
	}
	shown := rows
	if !o.All && len(shown) > shownCosts {
		shown = shown[:shownCosts]
	}
	if err := costTable(s.IO, shown, s.Now()).Print(s.IO.Out); err != nil {
		return err
	}
	total := 0.0
	for _, r := range rows {
		total += r.TotalCost
	}
	if len(shown) < len(rows) {
		s.IO.Printf("\n%d more: sky cost-report -a\n", len(rows)-len(shown))
	}
	s.IO.Printf("\nTotal Cost: $%.2f\n", total)
	return nil
}

// sortCosts puts live clusters first, each part newest first.
func sortCosts(rows []api.CostRow) {
	live := func(r api.CostRow) bool { return r.Status != string(api.ClusterTerminated) }
	sort.SliceStable(rows, func(i, j int) bool {
		if live(rows[i]) != live(rows[j]) {
			return live(rows[i])
		}
		return rows[i].LaunchedAt.After(rows[j].LaunchedAt)
	})
}

func costTable(io *console.Console, rows []api.CostRow, now time.Time) *table.Table {
	t := table.New("NAME", "LAUNCHED", "DURATION", "RESOURCES", "STATUS", "COST/hr", "COST (est.)")
	t.Style = func(h string) string { return io.OutStyle(session.Bold, h) }
	for _, r := range rows {
		res := fmt.Sprintf("%dx ", max(r.NumNodes, 1))
		if strings.HasPrefix(r.ResourcesStr, strings.TrimSpace(res)) { // it tells the number itself
			res = ""
		}
		t.Row(r.Name, table.Ago(now, r.LaunchedAt), table.Span(time.Duration(r.DurationSec*float64(time.Second))),
			res+r.ResourcesStr, r.Status,
			"$ "+table.Dollars(r.PricePerHour), "$ "+table.Dollars(r.TotalCost))
	}
	return t
}
