package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/sshhosts"
	"github.com/skyloom/skyloom/cli/table"
	"github.com/skyloom/skyloom/task"
)

// StatusOptions is `sky status`.
type StatusOptions struct {
	Names     []string
	Verbose   bool
	Refresh   bool
	IP        bool
	Endpoints bool
	Endpoint  string
	AllUsers  bool
	Output    string
	// ManagedJobs adds the section of managed jobs in progress, where all clusters are listed.
	ManagedJobs bool
}

// NewStatus makes `sky status`.
func NewStatus(s *session.Session, run func(context.Context, *session.Session, *StatusOptions) error) *cobra.Command {
	o := &StatusOptions{}
	if run == nil {
		run = Status
	}
	cmd := &cobra.Command{
		Use:   "status [CLUSTERS...]",
		Short: "Show clusters, and managed jobs in progress",
		Long: `Show clusters, and managed jobs in progress.

Without names, all of your clusters. Names may be globs. The rows come from the
server's records; -r asks the infra first.`,
		Example:           "  sky status\n  sky status 'train-*'\n  sky status --ip mycluster\n  sky status -o json",
		ValidArgsFunction: completeNames(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names = args
			picks := 0
			for _, on := range []bool{o.IP, o.Endpoints, o.Endpoint != ""} {
				if on {
					picks++
				}
			}
			switch {
			case picks > 1:
				return session.Usagef("--ip, --endpoints and --endpoint can't be combined")
			case picks == 1 && (len(args) != 1 || isGlob(args[0])):
				return session.Usagef("--ip, --endpoints and --endpoint take exactly one cluster")
			case o.IP && o.Refresh:
				return session.Usagef("--ip can't be combined with --refresh")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.Verbose, "verbose", "v", false, "more columns")
	fs.BoolVarP(&o.Refresh, "refresh", "r", false, "ask the infra about the clusters first")
	fs.BoolVar(&o.IP, "ip", false, "print the address of the head node of one cluster")
	fs.BoolVar(&o.Endpoints, "endpoints", false, "print all opened ports of one cluster with their addresses")
	fs.StringVar(&o.Endpoint, "endpoint", "", "print the address of one opened `PORT` of one cluster")
	fs.BoolVarP(&o.AllUsers, "all-users", "u", false, "clusters of all users")
	flags.Output(fs, &o.Output)
	flags.Pair(fs, &o.ManagedJobs, "show-managed-jobs", "", true, "show managed jobs in progress")
	var ignored bool
	for _, section := range []string{"services", "pools"} {
		flags.Pair(fs, &ignored, "show-"+section, "", true, "")
		fs.Lookup("show-" + section).Hidden = true // nothing to show yet
	}
	return cmd
}

// Status shows clusters.
func Status(ctx context.Context, s *session.Session, o *StatusOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	if o.Refresh {
		if err := refresh(ctx, s, c, o.Names, o.AllUsers); err != nil {
			return err
		}
	}
	if o.IP || o.Endpoints || o.Endpoint != "" {
		return address(ctx, s, c, o)
	}
	f := api.ClusterFilter{Names: o.Names, AllUsers: o.AllUsers || len(o.Names) > 0, Verbose: o.Verbose || o.Output == "json"}
	if !f.AllUsers {
		f.UserHash = s.User().Hash
	}
	jobs := managedJobs(ctx, s, c, o)
	list, err := c.Clusters(ctx, f)
	if err != nil {
		return err
	}
	sel := selection{clusters: list.Clusters}
	if len(o.Names) > 0 {
		sel = pick(list.Clusters, o.Names)
	}
	sshhosts.Seen(s, list.Clusters, plainNames(sel.missing), o.AllUsers && len(o.Names) == 0)
	if o.Output == "json" {
		if err := s.PrintJSON(statusJSON(sel.clusters)); err != nil {
			return err
		}
	} else if err := printStatus(s, o, list.EnabledInfra, sel, jobs); err != nil {
		return err
	}
	if len(sel.missing) > 0 {
		names := make([]string, len(sel.missing))
		for i, m := range sel.missing {
			names[i] = "'" + m + "'"
		}
		s.IO.Warnf("Cluster(s) %s not found.", strings.Join(names, ", "))
		if slices.ContainsFunc(sel.missing, controllerName.MatchString) {
			s.IO.Notef("%s", noControllers)
		}
		if sel.absent() {
			return session.Exit(1)
		}
	}
	return nil
}

// plainNames are those that are no globs.
func plainNames(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), isGlob)
}

func refresh(ctx context.Context, s *session.Session, c *api.Client, names []string, allUsers bool) error {
	b, err := s.Base()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		sel, err := find(ctx, s, c, names, true)
		if err != nil {
			return err
		}
		names = nil
		for _, cl := range sel.clusters {
			names = append(names, cl.Name)
		}
		if len(names) == 0 {
			return nil
		}
	}
	ref, err := c.Refresh(ctx, &api.RefreshBody{Base: b, Clusters: names, AllUsers: allUsers})
	if err != nil {
		return err
	}
	_, err = follow.Wait(ctx, s, c, ref, follow.Options{})
	return err
}

// address prints the head's address, or those of opened ports.
func address(ctx context.Context, s *session.Session, c *api.Client, o *StatusOptions) error {
	cl, err := c.Cluster(ctx, o.Names[0])
	if err != nil {
		return err
	}
	if cl.Status != api.ClusterUp && cl.Status != api.ClusterAutostopping {
		return &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("Cluster %s is not UP but %s.", cl.Name, cl.Status),
			Hint: "Start it: sky start " + cl.Name}
	}
	if cl.HeadIP == "" {
		return fmt.Errorf("the address of cluster %s is not known\nAsk the infra: sky status -r %s", cl.Name, cl.Name)
	}
	if o.IP {
		s.IO.Printf("%s\n", cl.HeadIP)
		return nil
	}
	ports, err := openedPorts(cl)
	if err != nil {
		return err
	}
	if o.Endpoint != "" {
		var port int
		if _, err := fmt.Sscanf(o.Endpoint, "%d", &port); err != nil || !slices.Contains(ports, port) {
			return fmt.Errorf("port %s of cluster %s is not opened\nOpened: %s. Ports are opened by `resources: ports:` at the next launch.", o.Endpoint, cl.Name, portList(ports))
		}
		s.IO.Printf("%s:%d\n", cl.HeadIP, port)
		return nil
	}
	if len(ports) == 0 {
		s.IO.Notef("Cluster %s has no opened ports.", cl.Name)
		return nil
	}
	if o.Output == "json" {
		m := map[string]string{}
		for _, p := range ports {
			m[fmt.Sprint(p)] = fmt.Sprintf("%s:%d", cl.HeadIP, p)
		}
		return s.PrintJSON(m)
	}
	for _, p := range ports {
		s.IO.Printf("%d: %s:%d\n", p, cl.HeadIP, p)
	}
	return nil
}

func portList(ports []int) string {
	if len(ports) == 0 {
		return "none"
	}
	return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(ports)), ", "), "[]")
}

// openedPorts reads the ports of the cluster's last launch.
func openedPorts(cl *api.Cluster) ([]int, error) {
	if cl.LastTaskYAML == "" {
		return nil, nil
	}
	f, err := task.Parse(cl.Name, []byte(cl.LastTaskYAML), task.ParseOptions{})
	if err != nil || len(f.Tasks) == 0 {
		return nil, fmt.Errorf("the last task of cluster %s can't be read: %w", cl.Name, err)
	}
	var out []int
	for _, r := range f.Tasks[0].PortsOpened() {
		for p := r.From; p <= r.To; p++ {
			out = append(out, p)
		}
	}
	return out, nil
}

// statusJSON adds to a cluster the fields of the JSON output that the API's row spells otherwise.
func statusJSON(cs []api.Cluster) []map[string]any {
	out := make([]map[string]any, 0, len(cs))
	for _, c := range cs {
		b, _ := json.Marshal(c)
		m := map[string]any{}
		_ = json.Unmarshal(b, &m)
		// Always present, null where unknown.
		for _, k := range []string{"init_kind", "init_status_reason", "last_use", "last_event", "region", "accelerators",
			"labels", "cluster_name_on_cloud", "node_names", "last_creation_yaml", "last_creation_command", "config_hash",
			"owner", "metadata", "priority", "priority_class", "links", "zone", "instance_type", "head_ip"} {
			if _, ok := m[k]; !ok {
				m[k] = nil
			}
		}
		out = append(out, m)
	}
	return out
}

func printStatus(s *session.Session, o *StatusOptions, enabled []string, sel selection, jobs func() (*api.ManagedList, error)) error {
	io := s.IO
	if len(o.Names) == 0 {
		infra := strings.Join(enabled, ", ")
		if infra == "" {
			infra = "none (see: sky check)"
		}
		ws := ""
		if b, err := s.Base(); err == nil && b.Workspace != "" && b.Workspace != "default" {
			ws = fmt.Sprintf(" (workspace: '%s')", b.Workspace)
		}
		io.Printf("%s: %s\n\n", io.OutStyle(session.Bold, "Enabled Infra"+ws), infra)
	}
	io.Printf("%s\n", io.OutStyle(session.Bold, "Clusters"))
	if len(sel.clusters) == 0 {
		if len(o.Names) == 0 {
			io.Printf("No existing clusters.\n")
		}
	} else if err := statusTable(io, o, sel.clusters, s.Now()).Print(io.Out); err != nil {
		return err
	}
	running, err := printJobs(s, o, jobs)
	if err != nil {
		return err
	}
	stopping := 0
	for _, c := range sel.clusters {
		if c.AutostopMinutes >= 0 && c.Status == api.ClusterUp {
			stopping++
		}
	}
	if running > 0 {
		io.Printf("\n%d managed job%s in progress. To see them: sky jobs queue --skip-finished\n", running, plural(running))
	}
	if stopping > 0 && len(o.Names) == 0 {
		io.Printf("\n%d cluster%s will stop or go down when idle. To change that: sky autostop CLUSTER --cancel\n", stopping, plural(stopping))
	}
	return nil
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

func statusTable(io *console.Console, o *StatusOptions, cs []api.Cluster, now time.Time) *table.Table {
	workspaces := map[string]bool{}
	for _, c := range cs {
		workspaces[c.Workspace] = true
	}
	showWS := o.Verbose || len(workspaces) > 1
	head := []string{"NAME"}
	if o.AllUsers {
		head = append(head, "USER")
		if o.Verbose {
			head = append(head, "USER_ID")
		}
	}
	if showWS {
		head = append(head, "WORKSPACE")
	}
	head = append(head, "INFRA", "RESOURCES", "STATUS", "AUTOSTOP", "LAUNCHED")
	if o.Verbose {
		head = append(head, "HEAD_IP", "COMMAND", "LAST_EVENT")
	}
	t := table.New(head...)
	t.Style = func(h string) string { return io.OutStyle(session.Bold, h) }
	for _, c := range cs {
		row := []any{c.Name}
		if o.AllUsers {
			row = append(row, c.UserName)
			if o.Verbose {
				row = append(row, c.UserHash)
			}
		}
		if showWS {
			row = append(row, c.Workspace)
		}
		res := c.ResourcesStr
		if o.Verbose && c.ResourcesFull != "" {
			res = c.ResourcesFull
		}
		row = append(row, infra(c, o.Verbose), res, statusCell(io, c), autostop(c), table.AgoPtr(now, c.LaunchedAt))
		if o.Verbose {
			row = append(row, c.HeadIP, console.Cut(c.LastUse, 60), c.LastEvent)
		}
		t.Row(row...)
	}
	return t
}

// infra is "Cloud (zone-or-region)", cut to 25 columns.
func infra(c api.Cluster, full bool) string {
	if c.Cloud == "" {
		return "-"
	}
	s := c.Cloud
	place := c.Zone
	if place == "" || c.Cloud == "slurm" {
		place = c.Region
	}
	if place != "" {
		s += " (" + place + ")"
	}
	if !full {
		s = console.Cut(s, 25)
	}
	return s
}

func statusCell(io *console.Console, c api.Cluster) string {
	switch {
	case c.Status == api.ClusterInit && c.InitKind == "unhealthy":
		return io.OutStyle(session.Red, "UNHEALTHY")
	case c.Status == api.ClusterUp:
		return io.OutStyle(session.Green, string(c.Status))
	case c.Status == api.ClusterStopped:
		return io.OutStyle(session.Yellow, string(c.Status))
	}
	return io.OutStyle(session.Cyan, string(c.Status))
}

// autostop is "10m", "2h(down)" or "-".
func autostop(c api.Cluster) string {
	m := c.AutostopMinutes
	if m < 0 {
		if c.ToDown {
			return "(down)"
		}
		return "-"
	}
	s := fmt.Sprintf("%dm", m)
	if m >= 60 && m%60 == 0 {
		s = fmt.Sprintf("%dh", m/60)
	}
	if c.ToDown {
		s += "(down)"
	}
	return s
}
