package catalog

import (
	"math"
	"regexp"
	"sort"
	"strings"
)

// byFold finds a device by its folded name or an alias.
var byFold = func() map[string]Device {
	m := make(map[string]Device, len(devices)+len(aliases))
	for _, d := range devices {
		m[fold(d.Name)] = d
	}
	for a, name := range aliases {
		m[a] = m[fold(name)]
	}
	return m
}()

// fold makes spellings comparable: lower case without separators.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == ' ' || r == '.' {
			return -1
		}
		return r
	}, strings.ToLower(s))
}

// Canonical is the name under which an accelerator is known: case and separators do not matter, well-known other spellings
// are understood. A name that is not in the table stays as it is written, except that TPU names are lower case.
func Canonical(name string) string {
	name = strings.TrimSpace(name)
	if d, ok := byFold[fold(name)]; ok {
		return d.Name
	}
	if IsTPU(name) {
		return strings.ToLower(name)
	}
	return name
}

// Same tells whether two names mean one accelerator.
func Same(a, b string) bool { return strings.EqualFold(Canonical(a), Canonical(b)) }

// IsTPU tells whether the name is one of Google's tensor processors.
func IsTPU(name string) bool { return strings.Contains(strings.ToLower(name), "tpu") }

// Lookup finds what is known of an accelerator. For TPUs the memory is that of one chip.
func Lookup(name string) (Device, bool) {
	if d, ok := byFold[fold(name)]; ok {
		return d, true
	}
	if n := strings.ToLower(strings.TrimSpace(name)); strings.HasPrefix(n, "tpu-") {
		gen, _, _ := strings.Cut(strings.TrimPrefix(n, "tpu-"), "-")
		if gb, ok := tpuMemoryGB[gen]; ok {
			return Device{Name: n, MemoryGB: gb, Manufacturer: google}, true
		}
	}
	return Device{}, false
}

// Common lists the GPUs that are shown when nobody asked for a particular one.
func Common() []string { return append([]string(nil), common...) }

// CommonTPUs lists the TPU slices that are shown when nobody asked for a particular one.
func CommonTPUs() []string { return append([]string(nil), commonTPUs...) }

// memoryToleranceGB is how far the memory a device reports may lie from the round number on its data sheet.
const memoryToleranceGB = 1

// FitsMemory tells whether a device with deviceGB is one of want GB, or of at least want GB. Devices report a little less
// than their data sheet says, so less than 1 GB of difference counts as equal. Zero memory (unknown) never fits.
func FitsMemory(deviceGB, want float64, atLeast bool) bool {
	if deviceGB <= 0 {
		return false
	}
	return math.Abs(deviceGB-want) < memoryToleranceGB || atLeast && deviceGB > want
}

// ByMemory lists the accelerators of the table with that memory per device (GB), or with at least that much; vendor
// narrows it when not empty (any case). TPUs are asked for by name only.
func ByMemory(gb float64, atLeast bool, vendor string) []string {
	var out []string
	for _, d := range devices {
		if FitsMemory(d.MemoryGB, gb, atLeast) && (vendor == "" || strings.EqualFold(vendor, d.Manufacturer)) {
			out = append(out, d.Name)
		}
	}
	return out
}

var (
	productVendor = regexp.MustCompile(`(?i)^(nvidia|amd|intel)\s+`)
	productFamily = regexp.MustCompile(`(?i)\b(tesla|geforce|instinct|graphics device|generation|laptop gpu)\b`)
	productForm   = regexp.MustCompile(`(?i)^(sxm\d*|pcie?|pg\d+|hbm\d\w*|ac|ms|grid|mig|nvl|oam)$`)
	productMemory = regexp.MustCompile(`(?i)^(\d+)gb$`)
	productSplit  = regexp.MustCompile(`[\s_-]+`)
)

// FromProduct turns the product name that a driver reports (`nvidia-smi --query-gpu=name`, `rocm-smi --showproductname`)
// into the canonical name: the family, form factor and bus are dropped, the memory is kept only where it tells two devices
// apart. memoryMiB is the memory the driver reports, 0 if unknown; it decides where the name is silent.
func FromProduct(product string, memoryMiB int) string {
	s := productVendor.ReplaceAllString(strings.TrimSpace(product), "")
	s = strings.TrimSpace(productFamily.ReplaceAllString(s, " "))
	if s == "" {
		return ""
	}
	var name []string
	memory, nvl := float64(memoryMiB)/1024, false
	for _, w := range productSplit.Split(s, -1) {
		switch m := productMemory.FindStringSubmatch(w); {
		case w == "":
		case m != nil:
			memory = parseInt(m[1])
		case productForm.MatchString(w):
			nvl = nvl || strings.EqualFold(w, "nvl")
		default:
			name = append(name, w)
		}
	}
	base := strings.Join(name, "")
	switch fold(base) {
	case "a100":
		return choose(memory > 60, "A100-80GB", "A100")
	case "v100", "v100s":
		return choose(memory > 24, "V100-32GB", "V100")
	case "h100":
		return choose(nvl || memory > 90, "H100-NVL", "H100")
	case "rtxpro6000blackwellserver", "rtxpro6000blackwellserveredition", "rtxpro6000blackwellworkstationedition",
		"rtxpro6000blackwellmaxqworkstationedition":
		return "RTXPRO6000"
	}
	return Canonical(base)
}

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}

func parseInt(digits string) float64 {
	var n float64
	for _, c := range digits {
		n = n*10 + float64(c-'0')
	}
	return n
}

// Similar lists those of among that look like name, the likest first, at most five: names that contain it or are contained in it,
// names of the same family, and slips of the keyboard. An equal name is not listed.
func Similar(name string, among []string) []string {
	want := fold(name)
	type scored struct {
		name  string
		score int
	}
	var found []scored
	seen := map[string]bool{want: true}
	for _, cand := range among {
		f := fold(cand)
		if seen[f] || f == "" {
			continue
		}
		seen[f] = true
		d := distance(want, f)
		switch {
		case want != "" && (strings.HasPrefix(f, want) || strings.HasPrefix(want, f)):
			found = append(found, scored{cand, d})
		case want != "" && (strings.Contains(f, want) || strings.Contains(want, f)):
			found = append(found, scored{cand, 10 + d})
		case d <= 1+len(want)/4:
			found = append(found, scored{cand, 20 + d})
		}
	}
	sort.Slice(found, func(i, j int) bool {
		if found[i].score != found[j].score {
			return found[i].score < found[j].score
		}
		return found[i].name < found[j].name
	})
	var out []string
	for _, s := range found {
		if len(out) == 5 {
			break
		}
		out = append(out, s.name)
	}
	return out
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between two short words.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, prev, cur := rows[0], rows[1], rows[2]
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		rows[0], rows[1], rows[2] = prev, cur, before
	}
	return rows[1][len(b)]
}
