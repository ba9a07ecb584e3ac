package rsyncd

import (
	"regexp"
	"strings"
)

// rule is one filter rule.
type rule struct {
	include  bool
	negate   bool
	dirOnly  bool
	sender   bool // concerns what is sent
	receiver bool // concerns what is deleted
	base     bool // matched against the last part of the name
	re       *regexp.Regexp
}

// filters are rules in order; the first that matches decides.
type filters []rule

// readFilters reads the rules that the client sends.
func readFilters(in *input) filters {
	var fs filters
	for {
		n := in.int()
		if n == 0 {
			return fs
		}
		fs = fs.add(in.text(int(n)))
	}
}

// add parses one rule in its long or short form: [+-][modifiers] PATTERN, or a bare pattern to exclude.
func (fs filters) add(line string) filters {
	if line == "!" {
		return nil
	}
	r := rule{sender: true, receiver: true}
	pattern := line
	kind, rest, ok := strings.Cut(line, " ")
	anchored := false
	if ok && kind != "" && strings.Trim(kind[1:], "/!Csrpxenw+-") == "" && strings.ContainsRune("+-:.", rune(kind[0])) {
		pattern = rest
		r.include = kind[0] == '+'
		if kind[0] == ':' || kind[0] == '.' {
			fail(exitSupport, "this node has no rsync of its own, and the one built into its agent does not read filter files (rule %q)", line)
		}
		for _, m := range kind[1:] {
			switch m {
			case '/':
				anchored = true
			case '!':
				r.negate = true
			case 's':
				r.sender, r.receiver = true, strings.ContainsRune(kind, 'r')
			case 'r':
				r.receiver, r.sender = true, strings.ContainsRune(kind, 's')
			case 'x':
				return fs // of attributes' names
			case 'p': // perishable: protects in folders that stay
			default:
				fail(exitSupport, "the filter rule %q is not understood by the rsync built into the node's agent", line)
			}
		}
	}
	if pattern == "" {
		return fs
	}
	if p, ok := strings.CutSuffix(pattern, "/"); ok && p != "" {
		r.dirOnly, pattern = true, p
	}
	r.compile(pattern, anchored)
	return append(fs, r)
}

// compile makes the pattern an expression. A leading slash ties it to the root of the transfer; other slashes, and **,
// make it match the end of the whole name; without any it matches the last part.
func (r *rule) compile(pattern string, anchored bool) {
	p, atRoot := strings.CutPrefix(pattern, "/")
	tail := ""
	if q, ok := strings.CutSuffix(p, "/***"); ok { // the folder and all in it
		p, tail = q, "(/.*)?"
	}
	r.base = !atRoot && !anchored && tail == "" && !strings.Contains(p, "/") && !strings.Contains(p, "**")
	head := "(^|/)"
	if atRoot || anchored || r.base {
		head = "^"
	}
	re, err := regexp.Compile("(?s)" + head + glob(p) + tail + "$")
	if err != nil {
		fail(exitSyntax, "the filter pattern %q is not understood: %v", pattern, err)
	}
	r.re = re
}

// glob translates wildcards: * and ? stop at slashes, ** does not.
func glob(p string) string {
	if !strings.ContainsAny(p, "*?[") {
		return regexp.QuoteMeta(p)
	}
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		switch c := p[i]; c {
		case '*':
			if i+1 < len(p) && p[i+1] == '*' {
				for i+1 < len(p) && p[i+1] == '*' {
					i++
				}
				b.WriteString(".*")
			} else {
				b.WriteString("[^/]*")
			}
		case '?':
			b.WriteString("[^/]")
		case '\\':
			if i+1 < len(p) {
				i++
			}
			b.WriteString(regexp.QuoteMeta(p[i : i+1]))
		case '[':
			end := i + 1
			if end < len(p) && (p[end] == '!' || p[end] == '^') {
				end++
			}
			if end < len(p) && p[end] == ']' {
				end++
			}
			for end < len(p) && p[end] != ']' {
				if p[end] == '[' && end+1 < len(p) && p[end+1] == ':' {
					if n := strings.Index(p[end:], ":]"); n > 0 {
						end += n + 1
					}
				} else if p[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(p) {
				b.WriteString(`\[`)
				continue
			}
			class := p[i+1 : end]
			if class != "" && class[0] == '!' {
				class = "^" + class[1:]
			}
			b.WriteString("[" + class + "]")
			i = end
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	return b.String()
}

// excludes says if the rules keep a name out, for sending or for deleting.
func (fs filters) excludes(name string, dir, sending bool) bool {
	for i := range fs {
		r := &fs[i]
		if sending && !r.sender || !sending && !r.receiver || r.dirOnly && !dir {
			continue
		}
		s := name
		if r.base {
			s = name[strings.LastIndexByte(name, '/')+1:]
		}
		if r.re.MatchString(s) != r.negate {
			return !r.include
		}
	}
	return false
}
