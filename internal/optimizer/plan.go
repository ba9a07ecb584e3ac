package optimizer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/skyloom/skyloom/api"
)

// Plan is what people are shown and confirm.
func Plan(res Result, numNodes int) api.Plan {
	return api.Plan{
		Hash:       HashOf(res, numNodes),
		NumNodes:   max(numNodes, 1),
		Candidates: append([]api.Candidate{}, res.Considered...),
		Notes:      append([]string(nil), res.Notes...),
	}
}

// HashOf is equal for two plans exactly if they would launch the same thing: the same number of nodes of the chosen kind, in the
// same places in the same order, at the same prices (to a hundredth of a cent). What else was considered does not
// count. It is empty when nothing was chosen.
func HashOf(res Result, numNodes int) string {
	if len(res.Choices) == 0 {
		return ""
	}
	first := res.Choices[0]
	kind := first.kind()
	var b strings.Builder
	fmt.Fprintf(&b, "plan/1 nodes=%d\n", max(numNodes, 1))
	spec := first.Spec
	spec.Region, spec.Zone, spec.PricePerHour = "", "", 0
	what, _ := json.Marshal(spec) // holds only strings, numbers, lists and a map of strings
	fmt.Fprintf(&b, "%s %s\n", first.Provider, what)
	for _, c := range res.Choices {
		if c.kind() == kind {
			fmt.Fprintf(&b, "%q %q $%d\n", c.Spec.Region, c.Spec.Zone, (micros(c.Spec.PricePerHour)+50)/100)
		}
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:8])
}
