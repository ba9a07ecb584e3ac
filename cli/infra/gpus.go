package infra

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
	"github.com/skyloom/skyloom/task"
)

// GPUsOptions is `sky gpus list`.
type GPUsOptions struct {
	Name       string // NAME or NAME:COUNT, "" for an overview
	All        bool
	Infra      string
	Region     string
	AllRegions bool
	Verbose    bool
	Output     string
}

// NewGPUs makes `sky gpus`.
func NewGPUs(s *session.Session, run func(context.Context, *session.Session, *GPUsOptions) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gpus",
		Short: "Accelerators: what there is, where, at what price",
		RunE:  session.Group,
	}
	cmd.AddCommand(newList(s, run, "list"))
	return cmd
}

// NewShowGPUs makes the deprecated `sky show-gpus`.
func NewShowGPUs(s *session.Session, run func(context.Context, *session.Session, *GPUsOptions) error) *cobra.Command {
	cmd := newList(s, run, "show-gpus")
	cmd.Hidden = true
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.IO.Warnf("sky show-gpus is deprecated; use sky gpus list.")
		return inner(cmd, args)
	}
	return cmd
}

func newList(s *session.Session, run func(context.Context, *session.Session, *GPUsOptions) error, verb string) *cobra.Command {
	o := &GPUsOptions{}
	if run == nil {
		run = GPUs
	}
	var cloud string
	cmd := &cobra.Command{
		Use:   verb + " [ACCELERATOR[:COUNT]]",
		Short: "List accelerators",
		Long: `List accelerators: without an argument what is free on machines of your own and which
kinds clouds offer, with one its offers and prices. Without a region each instance type
shows its cheapest one.`,
		Example: "  sky gpus list\n  sky gpus list A100:8 --infra aws\n  sky gpus list H100 --all-regions -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return session.Usagef("at most one accelerator (got %q)", args)
			}
			if len(args) == 1 {
				o.Name = args[0]
				if _, err := task.ParseAccelerator(o.Name); err != nil {
					return session.Usagef("%v", err)
				}
			}
			switch {
			case o.All && o.Name != "":
				return session.Usagef("--all goes without an accelerator")
			case o.AllRegions && o.Name == "":
				return session.Usagef("--all-regions needs an accelerator")
			case o.AllRegions && o.Region != "":
				return session.Usagef("--all-regions and --region can't be combined")
			case o.Region != "" && cloud == "":
				return session.Usagef("--region needs --cloud; better: --infra CLOUD/REGION")
			case o.Infra != "" && (cloud != "" || o.Region != ""):
				return session.Usagef("--infra can't be combined with --cloud or --region")
			}
			if cloud != "" {
				s.IO.Warnf("--cloud and --region are deprecated; use --infra CLOUD/REGION.")
				o.Infra = cloud
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.All, "all", "a", false, "uncommon accelerators and all prices too")
	fs.StringVar(&o.Infra, "infra", "", "only this infra: `CLOUD[/REGION]`")
	fs.StringVar(&cloud, "cloud", "", "")
	fs.StringVar(&o.Region, "region", "", "")
	fs.Lookup("cloud").Hidden, fs.Lookup("region").Hidden = true, true
	fs.BoolVar(&o.AllRegions, "all-regions", false, "every region, not only the cheapest")
	fs.BoolVarP(&o.Verbose, "verbose", "v", false, "say more")
	flags.Output(fs, &o.Output)
	return cmd
}

// GPUs lists accelerators.
func GPUs(ctx context.Context, s *session.Session, o *GPUsOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	list, err := c.GPUs(ctx, api.GPUFilter{Name: o.Name, Infra: o.Infra, Region: o.Region, All: o.All, AllRegions: o.AllRegions})
	if err != nil {
		return err
	}
	if o.Output == "json" {
		if list.Offers == nil {
			list.Offers = map[string][]api.GPUOffer{}
		}
		return s.PrintJSON(list.Offers)
	}
	out, done := s.Pager(o.All)
	defer done()
	if len(list.Pools) == 0 && len(list.Offers) == 0 {
		if o.Name == "" {
			fmt.Fprintln(out, "No accelerators on the enabled infra. See: sky check")
			return nil
		}
		return &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("no enabled infra offers %s", o.Name),
			Hint: "All there is: sky gpus list -a"}
	}
	printPools(s.IO, out, list.Pools)
	if o.Name != "" {
		for i, name := range sortedNames(list.Offers) {
			if i > 0 || len(list.Pools) > 0 {
				fmt.Fprintln(out)
			}
			if err := offerTable(s.IO, list.Offers[name]).Print(out); err != nil {
				return err
			}
		}
		return nil
	}
	return printOverview(s.IO, out, o, list)
}

func printPools(io *console.Console, out io.Writer, pools []api.GPUPool) {
	for i := 0; i < len(pools); {
		infra := pools[i].Infra
		fmt.Fprintln(out, io.OutStyle(session.Bold, "Infra: "+infra))
		t := table.New("GPU", "REQUESTABLE_QTY_PER_NODE", "UTILIZATION")
		for ; i < len(pools) && pools[i].Infra == infra; i++ {
			p := pools[i]
			t.Row(p.Name, quantities(p.Requestable), fmt.Sprintf("%g of %g free", p.Free, p.Total))
		}
		_ = t.Print(out)
		if i < len(pools) {
			fmt.Fprintln(out)
		}
	}
}

func printOverview(io *console.Console, out io.Writer, o *GPUsOptions, list *api.GPUList) error {
	var gpus, tpus []string
	for _, n := range sortedNames(list.Offers) {
		if strings.Contains(strings.ToLower(n), "tpu") {
			tpus = append(tpus, n)
		} else {
			gpus = append(gpus, n)
		}
	}
	gap := len(list.Pools) > 0
	section := func(title string, names []string) error {
		if len(names) == 0 {
			return nil
		}
		if gap {
			fmt.Fprintln(out)
		}
		gap = true
		fmt.Fprintf(out, "%s\n", io.OutStyle(session.Bold, title))
		t := table.New("GPU", "AVAILABLE_QUANTITIES")
		for _, n := range names {
			t.Row(n, quantities(counts(list.Offers[n])))
		}
		return t.Print(out)
	}
	if err := section("Cloud GPUs", gpus); err != nil {
		return err
	}
	if err := section("TPUs", tpus); err != nil {
		return err
	}
	if o.All {
		for _, n := range append(gpus, tpus...) {
			fmt.Fprintln(out)
			if err := offerTable(io, list.Offers[n]).Print(out); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Fprintln(out, "\nPrices: sky gpus list NAME. All accelerators: sky gpus list -a")
	return nil
}

func offerTable(io *console.Console, offers []api.GPUOffer) *table.Table {
	t := table.New("GPU", "QTY", "CLOUD", "INSTANCE_TYPE", "DEVICE_MEM", "vCPUs", "HOST_MEM", "HOURLY_PRICE", "HOURLY_SPOT_PRICE", "REGION")
	t.Style = func(h string) string { return io.OutStyle(session.Bold, h) }
	for _, o := range offers {
		instance := o.InstanceType
		switch {
		case instance == "" && o.CPUs == 0:
			instance = "(attachable)" // to a machine of one's choice
		case instance == "":
			instance = "-"
		}
		t.Row(o.Name, table.Number(o.Count), o.Cloud, instance, gb(o.DeviceMemGB), table.Number(o.CPUs), gb(o.MemoryGB),
			price(o.Price), price(o.SpotPrice), o.Region)
	}
	return t
}

func gb(f float64) string {
	if f == 0 {
		return "-"
	}
	return table.Number(f) + "GB"
}

func price(p *float64) string {
	if p == nil {
		return "-"
	}
	return "$ " + strconv.FormatFloat(*p, 'f', 3, 64)
}

func counts(offers []api.GPUOffer) []float64 {
	seen := map[float64]bool{}
	var out []float64
	for _, o := range offers {
		if !seen[o.Count] {
			seen[o.Count] = true
			out = append(out, o.Count)
		}
	}
	sort.Float64s(out)
	return out
}

func quantities(q []float64) string {
	s := make([]string, len(q))
	for i, f := range q {
		s[i] = table.Number(f)
	}
	return strings.Join(s, ", ")
}

func sortedNames(m map[string][]api.GPUOffer) []string {
	out := make([]string, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}
