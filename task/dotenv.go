package task

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// ParseDotenv reads a file of NAME=VALUE lines. It knows comments (#), an optional `export`, single quotes (literal),
// double quotes (with \n, \t, \r, \", \\ and \$) and values over several lines inside quotes. Outside of single quotes
// ${NAME} and ${NAME:-default} are replaced by what stands above in the file, else by what lookup gives; an unknown name
// without a default stays as it is written. A later line wins. name is for messages, which never show a value. The error
// is an ErrorList.
func ParseDotenv(name string, data []byte, lookup func(string) (string, bool)) (map[string]string, error) {
	var errs ErrorList
	fail := func(line int, format string, args ...any) {
		errs = append(errs, &Error{File: name, Line: line, Msg: fmt.Sprintf(format, args...)})
	}
	switch {
	case len(data) > yamldoc.MaxBytes:
		return nil, ErrorList{{File: name, Msg: fmt.Sprintf("the file has %d bytes; at most %d are read", len(data), yamldoc.MaxBytes)}}
	case !utf8.Valid(data):
		return nil, ErrorList{{File: name, Msg: "is not UTF-8 text"}}
	case strings.ContainsRune(string(data), 0):
		return nil, ErrorList{{File: name, Msg: "holds a NUL byte"}}
	}
	out := map[string]string{}
	known := func(k string) (string, bool) {
		if v, ok := out[k]; ok {
			return v, true
		}
		if lookup == nil {
			return "", false
		}
		return lookup(k)
	}
	put := func(line int, key, value string) {
		if len(value) > yamldoc.MaxBytes {
			fail(line, "the value of %s has more than %d bytes once its variables are replaced", key, yamldoc.MaxBytes)
			value = ""
		}
		out[key] = value
	}
	rest := strings.TrimPrefix(string(data), "\ufeff")
	rest = strings.ReplaceAll(rest, "\r\n", "\n")
	for line := 1; rest != ""; {
		text, after, _ := strings.Cut(rest, "\n")
		at := line
		trimmed := strings.TrimSpace(text)
		if trimmed == "" || strings.HasPrefix(trimmed, "#") {
			rest, line = after, line+1
			continue
		}
		if t, ok := strings.CutPrefix(trimmed, "export"); ok && t != "" && (t[0] == ' ' || t[0] == '\t') {
			trimmed = strings.TrimSpace(t)
		}
		key, value, ok := strings.Cut(trimmed, "=")
		key = strings.TrimSpace(key)
		if !ok || !envName.MatchString(key) {
			fail(at, "must be NAME=VALUE")
			rest, line = after, line+1
			continue
		}
		value = strings.TrimLeft(value, " \t")
		if value != "" && (value[0] == '"' || value[0] == '\'') {
			// A quoted value may go on over the following lines: read it from the rest of the file.
			from := strings.IndexByte(rest, '=') + 1
			from += strings.IndexByte(rest[from:], value[0])
			s, used, good := quoted(rest[from:], known)
			if !good {
				fail(at, "the value of %s has no closing quote", key)
				return nil, errs
			}
			put(at, key, s)
			line += strings.Count(rest[:from+used], "\n")
			tail, next, _ := strings.Cut(rest[from+used:], "\n")
			if tail = strings.TrimSpace(tail); tail != "" && !strings.HasPrefix(tail, "#") {
				fail(line, "the value of %s goes on after its closing quote", key)
			}
			rest, line = next, line+1
			continue
		}
		if i := strings.Index(" "+value, " #"); i >= 0 {
			value = value[:max(i-1, 0)]
		}
		put(at, key, expand(strings.TrimSpace(value), known))
		rest, line = after, line+1
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

var braced = regexp.MustCompile(`^\$\{([a-zA-Z_][a-zA-Z0-9_]*)(:-([^}]*))?\}`)

// expanded reads a variable at the start of s: what stands for it, and the number of bytes it took; 0: it stays.
func expanded(s string, known func(string) (string, bool)) (text string, used int) {
	m := braced.FindStringSubmatch(s)
	if m == nil {
		return "", 0
	}
	v, ok := known(m[1])
	switch {
	case m[2] != "" && (!ok || v == ""):
		return m[3], len(m[0])
	case !ok:
		return "", 0
	}
	return v, len(m[0])
}

// expand replaces the variables of an unquoted value.
func expand(s string, known func(string) (string, bool)) string {
	var b strings.Builder
	for s != "" {
		i := strings.IndexByte(s, '$')
		if i < 0 || b.Len() > yamldoc.MaxBytes {
			break
		}
		b.WriteString(s[:i])
		if v, used := expanded(s[i:], known); used > 0 {
			b.WriteString(v)
			s = s[i+used:]
		} else {
			b.WriteByte('$')
			s = s[i+1:]
		}
	}
	b.WriteString(s)
	return b.String()
}

// quoted reads a quoted text at the start of s and returns it with the number of bytes it took.
func quoted(s string, known func(string) (string, bool)) (text string, used int, ok bool) {
	q := s[0]
	if q == '\'' {
		end := strings.IndexByte(s[1:], '\'')
		if end < 0 {
			return "", 0, false
		}
		return s[1 : 1+end], end + 2, true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), i + 1, true
		case c == '$':
			if v, used := expanded(s[i:], known); used > 0 && b.Len() <= yamldoc.MaxBytes {
				b.WriteString(v)
				i += used - 1
			} else {
				b.WriteByte(c)
			}
		case c == '\\' && i+1 < len(s):
			i++
			switch s[i] {
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			case 'r':
				b.WriteByte('\r')
			case '"', '\\', '$', '\'':
				b.WriteByte(s[i])
			default:
				b.WriteByte('\\')
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, false
}
