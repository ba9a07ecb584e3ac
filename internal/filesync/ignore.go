package filesync

import (
	"strings"
)

// pattern is one line of an ignore file.
type pattern struct {
	negate  bool
	dirOnly bool
	// base: the pattern has no slash and is matched against the last name of a path.
	base bool
	// segs are the slash-separated parts, "**" among them.
	segs []string
	// literal is set if base and the pattern has no wildcard; suffix if it is "*" and plain text.
	literal, suffix string
}

// patterns is one ignore file: rules below the folder dir (relative to the top that paths are given from).
type patterns struct {
	dir  string
	list []pattern
}

// parsePatterns reads an ignore file. In a .gitignore a slash in the middle ties a pattern to its folder; in a
// .skyignore only a leading one does.
func parsePatterns(dir, text string, slashTies bool) patterns {
	ps := patterns{dir: dir}
	text = strings.TrimPrefix(text, "\ufeff")
	for line := range strings.SplitSeq(text, "\n") {
		if p, ok := parsePattern(strings.TrimSuffix(line, "\r"), slashTies); ok {
			ps.list = append(ps.list, p)
		}
	}
	return ps
}

func parsePattern(line string, slashTies bool) (p pattern, ok bool) {
	if strings.HasPrefix(line, "#") {
		return p, false
	}
	for strings.HasSuffix(line, " ") || strings.HasSuffix(line, "\t") {
		if strings.HasSuffix(line, `\ `) {
			break
		}
		line = line[:len(line)-1]
	}
	if strings.HasPrefix(line, "!") {
		p.negate, line = true, line[1:]
	}
	if strings.HasSuffix(line, "/") {
		p.dirOnly, line = true, strings.TrimRight(line, "/")
	}
	if !slashTies {
		line = strings.TrimPrefix(line, "./")
	}
	tied := strings.HasPrefix(line, "/")
	line = strings.TrimLeft(line, "/")
	if line == "" {
		return p, false
	}
	inner := strings.Contains(line, "/")
	switch {
	case tied, inner && slashTies:
		p.segs = strings.Split(line, "/")
	case inner:
		p.segs = append([]string{"**"}, strings.Split(line, "/")...)
	default:
		p.base = true
		p.segs = []string{line}
		if !strings.ContainsAny(line, `*?[\`) {
			p.literal = line
		} else if rest, ok := strings.CutPrefix(line, "*"); ok && rest != "" && !strings.ContainsAny(rest, `*?[\`) {
			p.suffix = rest
		}
	}
	return p, true
}

// match decides about a path relative to the patterns' top. The last pattern that matches wins.
func (ps *patterns) match(path string, dir bool) (ignored, decided bool) {
	rel := path
	if ps.dir != "" {
		var ok bool
		if rel, ok = strings.CutPrefix(path, ps.dir+"/"); !ok {
			return false, false
		}
	}
	name := baseOf(rel)
	for i := len(ps.list) - 1; i >= 0; i-- {
		p := &ps.list[i]
		if p.dirOnly && !dir {
			continue
		}
		var hit bool
		switch {
		case p.literal != "":
			hit = p.literal == name
		case p.suffix != "":
			hit = strings.HasSuffix(name, p.suffix)
		case p.base:
			hit = matchName(p.segs[0], name)
		default:
			hit = matchSegments(p.segs, strings.Split(rel, "/"))
		}
		if hit {
			return !p.negate, true
		}
	}
	return false, false
}

// matchSegments matches parts of a path, "**" standing for any number of them (at least one at the end). It goes back to
// the last "**" only, so that its cost stays quadratic whatever the pattern.
func matchSegments(ps, ss []string) bool {
	pi, si := 0, 0
	backP, backS := -1, 0
	for si < len(ss) {
		if pi < len(ps) && ps[pi] == "**" {
			if pi == len(ps)-1 {
				return true
			}
			backP, backS = pi, si
			pi++
			continue
		}
		if pi < len(ps) && matchName(ps[pi], ss[si]) {
			pi++
			si++
			continue
		}
		if backP < 0 {
			return false
		}
		backS++
		pi, si = backP+1, backS
	}
	return pi == len(ps)
}

// matchName matches one name against a glob of *, ?, [classes] and \ escapes; slashes play no part.
func matchName(p, s string) bool {
	pi, si := 0, 0
	backP, backS := -1, 0
	for si < len(s) {
		if pi < len(p) {
			switch p[pi] {
			case '*':
				for pi < len(p) && p[pi] == '*' {
					pi++
				}
				if pi == len(p) {
					return true
				}
				backP, backS = pi, si
				continue
			case '?':
				pi++
				si++
				continue
			case '[':
				if hit, width, ok := matchClass(p[pi:], s[si]); ok {
					if hit {
						pi += width
						si++
						continue
					}
				} else if s[si] == '[' { // an unclosed bracket is a plain character
					pi++
					si++
					continue
				}
			case '\\':
				if pi+1 < len(p) && p[pi+1] == s[si] {
					pi += 2
					si++
					continue
				}
			default:
				if p[pi] == s[si] {
					pi++
					si++
					continue
				}
			}
		}
		if backP < 0 {
			return false
		}
		backS++
		pi, si = backP, backS
	}
	for pi < len(p) && p[pi] == '*' {
		pi++
	}
	return pi == len(p)
}

// matchClass matches c against the bracket expression that p starts with; ok is false if it is not closed.
func matchClass(p string, c byte) (hit bool, width int, ok bool) {
	i := 1
	negate := false
	if i < len(p) && (p[i] == '!' || p[i] == '^') {
		negate = true
		i++
	}
	for first := true; i < len(p); first = false {
		if p[i] == ']' && !first {
			return hit != negate, i + 1, true
		}
		if strings.HasPrefix(p[i:], "[:") {
			if end := strings.Index(p[i:], ":]"); end > 0 {
				hit = hit || namedClass(p[i+2:i+end], c)
				i += end + 2
				continue
			}
		}
		lo := p[i]
		if lo == '\\' && i+1 < len(p) {
			i++
			lo = p[i]
		}
		i++
		hi := lo
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			hi = p[i+1]
			i += 2
			if hi == '\\' && i < len(p) {
				hi = p[i]
				i++
			}
		}
		if lo <= c && c <= hi {
			hit = true
		}
	}
	return false, 0, false
}

func namedClass(name string, c byte) bool {
	lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
	switch name {
	case "alpha":
		return lower || upper
	case "alnum":
		return lower || upper || digit
	case "digit":
		return digit
	case "lower":
		return lower
	case "upper":
		return upper
	case "space":
		return c == ' ' || (c >= '\t' && c <= '\r')
	case "xdigit":
		return digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')
	case "punct":
		return c > ' ' && c < 0x7f && !lower && !upper && !digit
	}
	return false
}
