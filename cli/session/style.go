package session

import "github.com/skyloom/skyloom/cli/console"

// Styles of the console, for the packages that already have a session.
const (
	Bold   = console.Bold
	Dim    = console.Dim
	Red    = console.Red
	Green  = console.Green
	Yellow = console.Yellow
	Cyan   = console.Cyan
)
