package cluster

import (
	"context"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/jobtable"
	"github.com/skyloom/skyloom/cli/session"
)

// jobsShown is how many managed jobs in progress a status shows.
const jobsShown = 5

// managedJobs asks for the managed jobs in progress while the clusters are asked for. The result waits for the answer; it
// is nil where the section is not wanted.
func managedJobs(ctx context.Context, s *session.Session, c *api.Client, o *StatusOptions) func() (*api.ManagedList, error) {
	if !o.ManagedJobs || len(o.Names) > 0 || o.Output == "json" {
		return nil
	}
	f := api.ManagedFilter{SkipFinished: true, Limit: jobsShown}
	if !o.AllUsers {
		f.UserHash = s.User().Hash
	}
	var list *api.ManagedList
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		list, err = c.ManagedJobs(ctx, f)
	}()
	return func() (*api.ManagedList, error) {
		<-done
		return list, err
	}
}

// printJobs shows the section of managed jobs, and says how many are in progress.
func printJobs(s *session.Session, o *StatusOptions, jobs func() (*api.ManagedList, error)) (running int, err error) {
	if jobs == nil {
		return 0, nil
	}
	io := s.IO
	list, err := jobs()
	if err != nil { // it does not spoil the clusters
		s.IO.Warnf("Managed jobs can't be read: %v", err)
		return 0, nil
	}
	io.Printf("\n%s\n", io.OutStyle(session.Bold, "Managed jobs"))
	if len(list.Jobs) == 0 {
		io.Printf("No in-progress managed jobs.\n")
		return 0, nil
	}
	if text := jobtable.InProgress(io, list.Counts); text != "" {
		io.Printf("%s\n", text)
	}
	return list.Total, jobtable.Table(io, list.Jobs, jobtable.Columns{AllUsers: o.AllUsers}, s.Now()).Print(io.Out)
}
