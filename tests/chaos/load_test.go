package chaos

import (
	"fmt"
	"strings"

	"github.com/skyloom/skyloom/tests/rig"
)

// script is the task of a request: each rank writes down when it begins and when it has done its work.
func (in *instance) script(id string, j rig.Job) string {
	var s strings.Builder
	fmt.Fprintf(&s, "name: chaos\nnum_nodes: %d\nenvs:\n  KEY: %s\nrun: |\n", max(j.Nodes, 1), id)
	fmt.Fprintf(&s, "  echo \"begin $KEY $SKYPILOT_NODE_RANK\" >> %s\n", in.ledger)
	if j.Sleep != "" {
		fmt.Fprintf(&s, "  sleep %s\n", j.Sleep)
	}
	fmt.Fprintf(&s, "  echo \"end $KEY $SKYPILOT_NODE_RANK\" >> %s\n", in.ledger)
	return s.String()
}
