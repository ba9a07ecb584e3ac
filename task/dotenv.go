package task

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// ParseDotenv reads a file of NAME=VALUE lines. It knows comments (#), an optional `export`, single quotes (literal),
// double quotes (with \n, \t, \r, \", \\ and \$) and values over several lines inside quotes. Variables are not
// replaced. A later line wins. name is for messages, which never show a value. The error is an ErrorList.
func ParseDotenv(name string, data []byte) (map[string]string, error) {
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
			s, used, good := quoted(rest[from:])
			if !good {
				fail(at, "the value of %s has no closing quote", key)
				return nil, errs
			}
			out[key] = s
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
		out[key] = strings.TrimSpace(value)
		rest, line = after, line+1
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

// quoted reads a quoted text at the start of s and returns it with the number of bytes it took.
func quoted(s string) (text string, used int, ok bool) {
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
