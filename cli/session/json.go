package session

import "encoding/json"

// PrintJSON writes v to Out, indented by two.
func (s *Session) PrintJSON(v any) error {
	enc := json.NewEncoder(s.IO.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
