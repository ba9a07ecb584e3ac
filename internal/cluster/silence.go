package cluster

import (
	"fmt"
	"strings"
)

// Words with which the reason of a status begins while a node is silent.
const (
	Suspect = "SUSPECT"
	Lost    = "LOST"
)

// SilentReason is the reason of a status while the node of a rank is silent.
func SilentReason(word string, rank int, how string) string {
	return fmt.Sprintf("%s: node %d %s", word, rank, how)
}

// ShownSilent says that the reason of a status tells of the silence of the node of a rank.
func ShownSilent(reason string, rank int) bool {
	for _, word := range []string{Suspect, Lost} {
		if strings.HasPrefix(reason, SilentReason(word, rank, "")) {
			return true
		}
	}
	return false
}
