package cluster

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

// isGlob tells a pattern from a name.
func isGlob(s string) bool { return strings.ContainsAny(s, "*?[") }

// match tells whether a pattern or name selects a cluster.
func match(pattern, name string) bool {
	if !isGlob(pattern) {
		return pattern == name
	}
	ok, err := path.Match(strings.ReplaceAll(pattern, "[!", "[^"), name)
	return err == nil && ok
}

// selection is which of the wanted names exist.
type selection struct {
	clusters []api.Cluster
	missing  []string // patterns without a match, in order
}

// absent tells whether a plain name, not a pattern, was missing.
func (s selection) absent() bool {
	for _, m := range s.missing {
		if !isGlob(m) {
			return true
		}
	}
	return false
}

// find reads the clusters that names select; without names all of the caller's (or everybody's).
func find(ctx context.Context, s *session.Session, c *api.Client, names []string, allUsers bool) (selection, error) {
	f := api.ClusterFilter{Names: names, AllUsers: allUsers || len(names) > 0}
	if !f.AllUsers {
		f.UserHash = s.User().Hash
	}
	list, err := c.Clusters(ctx, f)
	if err != nil {
		return selection{}, err
	}
	if len(names) == 0 {
		return selection{clusters: list.Clusters}, nil
	}
	return pick(list.Clusters, names), nil
}

func pick(all []api.Cluster, names []string) selection {
	var sel selection
	seen := map[string]bool{}
	for _, n := range names {
		hit := false
		for _, cl := range all {
			if match(n, cl.Name) {
				hit = true
				if !seen[cl.Name] {
					seen[cl.Name] = true
					sel.clusters = append(sel.clusters, cl)
				}
			}
		}
		if !hit {
			sel.missing = append(sel.missing, n)
		}
	}
	return sel
}

// addLaunching adds to a selection the clusters that names select (without names all of the caller's, or everybody's)
// whose launch was accepted a moment ago, so that no row tells of them yet.
func addLaunching(ctx context.Context, s *session.Session, c *api.Client, names []string, allUsers bool, sel *selection) error {
	if len(names) > 0 && len(sel.missing) == 0 {
		return nil
	}
	reqs, err := c.Requests(ctx, api.RequestFilter{})
	if err != nil {
		return err
	}
	known := map[string]bool{"": true}
	for _, cl := range sel.clusters {
		known[cl.Name] = true
	}
	me := s.User().Hash
	for _, r := range reqs {
		wanted := len(names) == 0 && (allUsers || r.UserHash == me)
		for _, m := range sel.missing {
			wanted = wanted || match(m, r.Cluster)
		}
		if r.Name != "sky.launch" || known[r.Cluster] || !wanted {
			continue
		}
		known[r.Cluster] = true
		sel.clusters = append(sel.clusters, api.Cluster{Name: r.Cluster, Status: api.ClusterInit})
	}
	sel.missing = slices.DeleteFunc(sel.missing, func(m string) bool {
		return slices.ContainsFunc(sel.clusters, func(cl api.Cluster) bool { return match(m, cl.Name) })
	})
	return nil
}

// tellMissing says which names found nothing.
func tellMissing(s *session.Session, sel selection) {
	for _, m := range sel.missing {
		s.IO.Warnf("Cluster %s not found.", session.Quote(m))
		if controllerName.MatchString(m) {
			s.IO.Notef("%s", noControllers)
		}
	}
}

const noControllers = "There are no controller clusters here: the server looks after managed jobs itself. See: sky jobs queue"

// notFound is the error for one unknown cluster.
func notFound(name string) error {
	if controllerName.MatchString(name) {
		return &api.Error{Kind: api.ErrClusterDoesNotExist, Message: fmt.Sprintf("Cluster %s not found.", session.Quote(name)),
			Hint: noControllers}
	}
	return &api.Error{Kind: api.ErrClusterDoesNotExist, Message: fmt.Sprintf("Cluster %s not found.", session.Quote(name)),
		Hint: "The clusters there are: sky status -u"}
}

// completeNames completes cluster names.
func completeNames(s *session.Session, most int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, incomplete string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return s.Complete(cmd.Context(), "cluster_name", incomplete), cobra.ShellCompDirectiveNoFileComp
	}
}

// nameList joins names for a sentence.
func nameList(cs []api.Cluster) string {
	n := make([]string, len(cs))
	for i, c := range cs {
		n[i] = c.Name
	}
	return strings.Join(n, ", ")
}
