package secret

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"sort"
	"strings"
)

// Mask stands where a secret was.
const Mask = "*****"

// shortValue is the length below which a value is masked only where it stands alone: the secret "1" must not turn every
// number into stars.
const shortValue = 4

// Redactor masks known values in text: as they are, and as JSON, URLs and base64 write them. The zero value and nil mask
// nothing. It is safe for concurrent use.
type Redactor struct {
	long  *strings.Replacer
	short []string
}

// NewRedactor makes a Redactor. Empty values are skipped; of values over several lines each line is masked too.
func NewRedactor(values ...string) *Redactor {
	forms := map[string]bool{}
	r := &Redactor{}
	for _, v := range values {
		v = strings.TrimRight(v, "\r\n")
		if strings.TrimSpace(v) == "" {
			continue
		}
		if len(v) < shortValue {
			r.short = append(r.short, v)
			continue
		}
		forms[v] = true
		for line := range strings.SplitSeq(v, "\n") {
			if line = strings.TrimSpace(line); len(line) >= 2*shortValue {
				forms[line] = true
			}
		}
		if j, err := json.Marshal(v); err == nil {
			forms[string(j[1:len(j)-1])] = true
		}
		forms[url.QueryEscape(v)] = true
		forms[url.PathEscape(v)] = true
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			forms[strings.TrimRight(enc.EncodeToString([]byte(v)), "=")] = true
		}
	}
	if len(forms) == 0 {
		return r
	}
	list := make([]string, 0, len(forms))
	for f := range forms {
		list = append(list, f)
	}
	// The longest first, so that a value that holds another is masked whole.
	sort.Slice(list, func(i, j int) bool {
		if len(list[i]) != len(list[j]) {
			return len(list[i]) > len(list[j])
		}
		return list[i] < list[j]
	})
	pairs := make([]string, 0, 2*len(list))
	for _, f := range list {
		pairs = append(pairs, f, Mask)
	}
	r.long = strings.NewReplacer(pairs...)
	return r
}

// String masks the values in s.
func (r *Redactor) String(s string) string {
	if r == nil {
		return s
	}
	if r.long != nil {
		s = r.long.Replace(s)
	}
	for _, v := range r.short {
		s = maskWord(s, v)
	}
	return s
}

// Bytes masks the values in b.
func (r *Redactor) Bytes(b []byte) []byte {
	if r == nil || (r.long == nil && len(r.short) == 0) {
		return b
	}
	return []byte(r.String(string(b)))
}

func maskWord(s, v string) string {
	var out strings.Builder
	for rest := s; ; {
		i := strings.Index(rest, v)
		if i < 0 {
			out.WriteString(rest)
			return out.String()
		}
		end := i + len(v)
		before := len(s) - len(rest) + i
		alone := (before == 0 || !wordByte(s[before-1])) && (end == len(rest) || !wordByte(rest[end]))
		out.WriteString(rest[:i])
		if alone {
			out.WriteString(Mask)
		} else {
			out.WriteString(v)
		}
		rest = rest[end:]
	}
}

func wordByte(c byte) bool {
	return c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
