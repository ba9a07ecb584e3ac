package simagent

import (
	"strconv"
	"strings"
	"time"
)

// chunk is output that appears at a time after the start.
type chunk struct {
	at   time.Duration
	text string
}

// plan is what a script does.
type plan struct {
	output []chunk
	takes  time.Duration
	code   int
}

// read interprets a script as the package comment says. A script that neither sleeps nor exits takes the default time.
func read(script string, takes time.Duration) plan {
	var p plan
	timed := false
	words := strings.FieldsFunc(script, func(r rune) bool { return r == '\n' || r == ';' })
	for _, line := range words {
		for cmd := range strings.SplitSeq(line, "&&") {
			cmd = strings.TrimSpace(cmd)
			name, arg, _ := strings.Cut(cmd, " ")
			arg = strings.TrimSpace(arg)
			switch name {
			case "echo":
				if len(arg) >= 2 && (arg[0] == '"' || arg[0] == '\'') && arg[len(arg)-1] == arg[0] {
					arg = arg[1 : len(arg)-1]
				}
				p.output = append(p.output, chunk{p.takes, arg + "\n"})
			case "sleep":
				if s, err := strconv.ParseFloat(strings.TrimSuffix(arg, "s"), 64); err == nil && s >= 0 {
					p.takes += time.Duration(s * float64(time.Second))
					timed = true
				}
			case "exit":
				p.code, _ = strconv.Atoi(arg)
				return p
			case "false":
				p.code = 1
				return p
			}
		}
	}
	if !timed {
		p.takes = takes
	}
	return p
}

// until is the output that was there after d.
func (p plan) until(d time.Duration) string {
	var b strings.Builder
	for _, c := range p.output {
		if c.at <= d {
			b.WriteString(c.text)
		}
	}
	return b.String()
}

// nextAfter is when the next output comes after d, if any does.
func (p plan) nextAfter(d time.Duration) (time.Duration, bool) {
	for _, c := range p.output {
		if c.at > d {
			return c.at, true
		}
	}
	return 0, false
}
