package yamldoc

import (
	"math"

	"gopkg.in/yaml.v3"
)

// Plain turns a node that Load returned into plain values: map[string]any, []any, string, bool, int, float64 and nil.
// A whole number is an int however it is written. What fits none of them exactly stays text as it is written.
func Plain(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			out[n.Content[i].Value] = Plain(n.Content[i+1])
		}
		return out
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			out = append(out, Plain(c))
		}
		return out
	}
	if IsNull(n) {
		return nil
	}
	switch n.ShortTag() {
	case "!!bool":
		var b bool
		if n.Decode(&b) == nil {
			return b
		}
	case "!!int":
		var i int
		if n.Decode(&i) == nil {
			return i
		}
	case "!!float":
		var f float64
		switch {
		case n.Decode(&f) != nil || math.IsNaN(f) || math.IsInf(f, 0):
		case f == math.Trunc(f) && math.Abs(f) < 1<<53:
			return int(f)
		default:
			return f
		}
	}
	return n.Value
}
