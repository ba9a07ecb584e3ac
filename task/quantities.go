package task

import (
	"fmt"
	"math"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
)

const anyPart = "*"

var cloudName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// ParseInfra reads `cloud`, `cloud/region` or `cloud/region/zone`, with `*` for any. On kubernetes all after the first
// slash is the context; on ssh it is the pool.
func ParseInfra(s string) (Infra, error) {
	parts := strings.Split(strings.TrimSpace(s), "/")
	for _, p := range parts {
		if p == "" || p != strings.TrimSpace(p) || strings.ContainsFunc(p, notPrintable) {
			return Infra{}, fmt.Errorf("%q has an empty part; write cloud, cloud/region or cloud/region/zone, with * for any", s)
		}
	}
	cloud := canonicalCloud(parts[0])
	if cloud != anyPart && !cloudName.MatchString(cloud) {
		return Infra{}, fmt.Errorf("%q does not start with the name of an infra; write for example local, ssh/<pool>, k8s/<context> or aws/us-east-1", s)
	}
	if cloud == "kubernetes" {
		return Infra{Cloud: cloud, Region: strings.Join(parts[1:], "/")}, nil
	}
	most := 3
	if cloud == "ssh" || cloud == "local" {
		most = 2
	}
	if len(parts) > most {
		return Infra{}, fmt.Errorf("%q has %d parts; at most %d are allowed", s, len(parts), most)
	}
	out := Infra{Cloud: cloud}
	if len(parts) > 1 {
		out.Region = parts[1]
	}
	if len(parts) > 2 {
		out.Zone = parts[2]
	}
	if out.Zone == anyPart {
		out.Zone = ""
	}
	if out.Zone == "" && out.Region == anyPart {
		out.Region = ""
	}
	return out, nil
}

func canonicalCloud(s string) string {
	s = strings.ToLower(s)
	if s == "k8s" {
		return "kubernetes"
	}
	return s
}

func notPrintable(r rune) bool { return r < ' ' || r == 0x7f }

// IsZero tells whether nothing was said.
func (i Infra) IsZero() bool { return i == Infra{} }

// Concrete turns the wildcard "*" into an empty part.
func (i Infra) Concrete() Infra {
	clear := func(s string) string {
		if s == anyPart {
			return ""
		}
		return s
	}
	return Infra{clear(i.Cloud), clear(i.Region), clear(i.Zone)}
}

// String is the form that ParseInfra reads; "*" when anything goes.
func (i Infra) String() string {
	part := func(s string) string {
		if s == "" {
			return anyPart
		}
		return s
	}
	switch {
	case i.Zone != "":
		return part(i.Cloud) + "/" + part(i.Region) + "/" + i.Zone
	case i.Region != "":
		return part(i.Cloud) + "/" + i.Region
	}
	return part(i.Cloud)
}

// Contains tells whether a place lies inside i; empty parts of i match anything.
func (i Infra) Contains(place Infra) bool {
	i = i.Concrete()
	return (i.Cloud == "" || i.Cloud == place.Cloud) && (i.Region == "" || i.Region == place.Region) && (i.Zone == "" || i.Zone == place.Zone)
}

var (
	acceleratorName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	acceleratorMemory = regexp.MustCompile(`^(\d+(?:\.\d+)?)([KMGTPkmgtp][Bb])(\+?)$`)
)

// ParseAccelerator reads `H100`, `H100:8`, `H100:0.5`, or by memory `16GB`, `16GB+:2`, `nvidia:16GB+:2`.
func ParseAccelerator(s string) (Accelerator, error) {
	a, counted, err := parseAccelerator(s)
	if err == nil && !counted {
		a.Count = 1
	}
	return a, err
}

func parseAccelerator(s string) (a Accelerator, counted bool, err error) {
	const shape = "write a name like H100, a name and a count like H100:8, or a memory size like 16GB+"
	if isReset(s) {
		return a, false, fmt.Errorf("%q names no accelerator; leave the field out for none", s)
	}
	parts := strings.Split(strings.TrimSpace(s), ":")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	if len(parts) >= 2 && acceleratorMemory.MatchString(parts[1]) {
		if !acceleratorName.MatchString(parts[0]) {
			return a, false, fmt.Errorf("%q: %s", s, shape)
		}
		a.Vendor, parts = strings.ToLower(parts[0]), parts[1:]
	}
	if len(parts) > 2 || !acceleratorMemory.MatchString(parts[0]) && !acceleratorName.MatchString(parts[0]) {
		return a, false, fmt.Errorf("%q: %s", s, shape)
	}
	if m := acceleratorMemory.FindStringSubmatch(parts[0]); m != nil {
		if a.MemoryGB, err = toGB(m[1], m[2]); err != nil {
			return a, false, err
		}
		a.MemoryAtLeast = m[3] != ""
	} else {
		a.Name = parts[0]
	}
	if len(parts) == 2 {
		if a.Count, err = positive(parts[1]); err != nil {
			return a, false, fmt.Errorf("the count in %q %w", s, err)
		}
		counted = true
	}
	return a, counted, nil
}

// String is the form that ParseAccelerator reads, always with the count.
func (a Accelerator) String() string { return a.kind() + ":" + num(a.Count) }

func (a Accelerator) kind() string {
	if a.Name != "" {
		return a.Name
	}
	s := num(a.MemoryGB) + "GB"
	if a.Vendor != "" {
		s = a.Vendor + ":" + s
	}
	if a.MemoryAtLeast {
		s += "+"
	}
	return s
}

// IsTPU tells whether the accelerator is one of Google's tensor processors.
func (a Accelerator) IsTPU() bool { return strings.Contains(strings.ToLower(a.Name), "tpu") }

// isGKETPU tells whether the name is one that only GKE knows.
func (a Accelerator) isGKETPU() bool {
	n := strings.ToLower(a.Name)
	return a.IsTPU() && (strings.HasSuffix(n, "slice") || strings.HasSuffix(n, "-device"))
}

// ParseCPUs reads `4` or `4+`.
func ParseCPUs(s string) (CPUs, error) {
	t, plus := strings.CutSuffix(strings.TrimSpace(s), "+")
	n, err := positive(t)
	if err != nil {
		return CPUs{}, fmt.Errorf("%q %w; write a number like 4, or 4+ for at least 4", s, err)
	}
	return CPUs{N: n, AtLeast: plus}, nil
}

// IsZero tells whether nothing was said.
func (c CPUs) IsZero() bool { return c == CPUs{} }

// String is the form that ParseCPUs reads.
func (c CPUs) String() string {
	if c.IsZero() {
		return ""
	}
	return num(c.N) + plus(c.AtLeast)
}

// Meets tells whether a machine with that many CPUs fits.
func (c CPUs) Meets(cpus float64) bool {
	return c.N == 0 || cpus == c.N || c.AtLeast && cpus > c.N
}

var memorySize = regexp.MustCompile(`^(\d+(?:\.\d+)?)\s*([A-Za-z]*)(\+?)$`)

// ParseMemory reads `32` (GB), `32+`, a size with a unit like `64GB` or `1TB+`, or `4x` (GB per CPU). Zero is
// understood as all the memory of a Slurm node.
func ParseMemory(s string) (Memory, error) {
	const shape = "write GB like 32, 32+ for at least 32, or a unit like 64GB"
	m := memorySize.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return Memory{}, fmt.Errorf("%q is not an amount of memory; %s", s, shape)
	}
	out := Memory{AtLeast: m[3] != ""}
	unit := m[2]
	if strings.EqualFold(unit, "x") {
		out.PerCPU, unit = true, ""
	}
	gb, err := toGB(m[1], unit)
	switch {
	case err != nil:
		return Memory{}, fmt.Errorf("%q: %w; %s", s, err, shape)
	case gb == 0 && !out.PerCPU && !out.AtLeast:
		return Memory{Whole: true}, nil
	case gb == 0:
		return Memory{}, fmt.Errorf("%q must be more than 0; %s", s, shape)
	}
	out.GB = gb
	return out, nil
}

// IsZero tells whether nothing was said.
func (m Memory) IsZero() bool { return m == Memory{} }

// String is the form that ParseMemory reads.
func (m Memory) String() string {
	switch {
	case m.Whole:
		return "0"
	case m.IsZero():
		return ""
	case m.PerCPU:
		return num(m.GB) + "x" + plus(m.AtLeast)
	}
	return num(m.GB) + plus(m.AtLeast)
}

// Meets tells whether a machine with that many CPUs and GB fits.
func (m Memory) Meets(cpus, gb float64) bool {
	want := m.GB
	if m.PerCPU {
		want *= cpus
	}
	return want == 0 || gb == want || m.AtLeast && gb > want
}

// toGB converts a number in unit to GB of 1024^3 bytes; no unit is GB.
func toGB(number, unit string) (float64, error) {
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsInf(n, 0) || n > 1e12 {
		return 0, fmt.Errorf("%s is out of range", number)
	}
	u := strings.ToUpper(unit)
	u = strings.TrimSuffix(strings.TrimSuffix(u, "B"), "I")
	scale, ok := map[string]float64{"K": 1.0 / (1 << 20), "M": 1.0 / (1 << 10), "G": 1, "T": 1 << 10, "P": 1 << 20}[u]
	switch {
	case unit == "":
		return n, nil
	case !ok:
		return 0, fmt.Errorf("unknown unit %q (KB, MB, GB, TB and PB are known)", unit)
	}
	return n * scale, nil
}

// parseGB reads a whole number of GB, with or without a unit.
func parseGB(s string) (int, error) {
	m := memorySize.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil || m[3] != "" {
		return 0, fmt.Errorf("%q is not a size; write GB like 256, or a unit like 1TB", s)
	}
	gb, err := toGB(m[1], m[2])
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q: %w", s, err)
	case gb <= 0 || gb > 1<<30:
		return 0, fmt.Errorf("%q must be more than 0 and at most 1024PB", s)
	case gb != math.Trunc(gb):
		return 0, fmt.Errorf("%q is not a whole number of GB", s)
	}
	return int(gb), nil
}

// ParseLocalDisk reads `nvme`, `ssd`, `1000+`, `nvme:1000+` or `ssd:500`.
func ParseLocalDisk(s string) (LocalDisk, error) {
	d := LocalDisk{Mode: "nvme", SizeGB: DefaultLocalDiskGB, AtLeast: true}
	mode, size, two := strings.Cut(strings.ToLower(strings.TrimSpace(s)), ":")
	switch {
	case mode == "nvme" || mode == "ssd":
		d.Mode = mode
		if !two {
			return d, nil
		}
	case !two:
		size = mode
	default:
		return LocalDisk{}, fmt.Errorf("%q starts with an unknown kind of disk; nvme and ssd are known", s)
	}
	m := memorySize.FindStringSubmatch(size)
	if m == nil {
		return LocalDisk{}, fmt.Errorf("%q is not a local disk; write nvme, ssd, 1000+, or nvme:1000+", s)
	}
	gb, err := toGB(m[1], m[2])
	if err != nil || gb <= 0 {
		return LocalDisk{}, fmt.Errorf("%q is not a local disk; the size is in GB and more than 0", s)
	}
	d.SizeGB, d.AtLeast = gb, m[3] != ""
	return d, nil
}

// String is the normal form mode:size[+].
func (d LocalDisk) String() string { return d.Mode + ":" + num(d.SizeGB) + plus(d.AtLeast) }

// ParsePorts reads one port, a range like 8000-8010, or several of them separated by commas.
func ParsePorts(s string) (Ports, error) {
	var out Ports
	for _, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		from, to, isRange := strings.Cut(part, "-")
		a, err := parsePort(from)
		if err != nil {
			return nil, fmt.Errorf("%q %w", part, err)
		}
		b := a
		if isRange {
			if b, err = parsePort(to); err != nil {
				return nil, fmt.Errorf("%q %w", part, err)
			}
		}
		if a > b {
			return nil, fmt.Errorf("%q ends before it starts", part)
		}
		out = append(out, PortRange{a, b})
	}
	return out.normal(), nil
}

func parsePort(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		return 0, fmt.Errorf("is not a port; write a number like 8080, or a range like 8000-8010")
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("is out of range; ports go from 1 to 65535")
	}
	return n, nil
}

// normal sorts and joins ranges; nil for none.
func (p Ports) normal() Ports {
	if len(p) == 0 {
		return nil
	}
	in := append(Ports(nil), p...)
	sort.Slice(in, func(i, j int) bool { return in[i].From < in[j].From })
	out := in[:1]
	for _, r := range in[1:] {
		if last := &out[len(out)-1]; r.From <= last.To+1 {
			last.To = max(last.To, r.To)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// Union is every port of p and q.
func (p Ports) Union(q Ports) Ports { return append(append(Ports(nil), p...), q...).normal() }

// Contains tells whether every port of q is in p.
func (p Ports) Contains(q Ports) bool {
	for _, r := range q {
		ok := false
		for _, h := range p {
			ok = ok || h.From <= r.From && r.To <= h.To
		}
		if !ok {
			return false
		}
	}
	return true
}

// Count is the number of ports.
func (p Ports) Count() int {
	n := 0
	for _, r := range p {
		n += r.To - r.From + 1
	}
	return n
}

// Strings lists the ranges as "8080" or "8000-8010".
func (p Ports) Strings() []string {
	out := make([]string, len(p))
	for i, r := range p {
		out[i] = r.String()
	}
	return out
}

// String joins the ranges with commas.
func (p Ports) String() string { return strings.Join(p.Strings(), ",") }

// String is "8080" or "8000-8010".
func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(r.From)
	}
	return strconv.Itoa(r.From) + "-" + strconv.Itoa(r.To)
}

var durationPart = regexp.MustCompile(`^(\d{1,9})([smhdw])`)

// ParseDuration reads `30s`, `10m`, `1h30m`, `2d`, `1w`, or a bare number of seconds.
func ParseDuration(s string) (time.Duration, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	if n, err := strconv.ParseUint(t, 10, 31); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	var d time.Duration
	for rest := t; rest != "" || t == ""; {
		m := durationPart.FindStringSubmatch(rest)
		if m == nil {
			return 0, fmt.Errorf("%q is not a duration; write for example 30s, 10m, 2h or 7d", s)
		}
		n, _ := strconv.Atoi(m[1])
		d += time.Duration(n) * map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}[m[2]]
		if d < 0 || d > 100*365*24*time.Hour {
			return 0, fmt.Errorf("%q is more than 100 years", s)
		}
		rest = rest[len(m[0]):]
	}
	return d, nil
}

// FormatDuration is the shortest form that ParseDuration reads.
func FormatDuration(d time.Duration) string {
	if d < time.Second {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if n := d / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.size
		}
	}
	return b.String()
}

var idleMinutes = regexp.MustCompile(`^(\d{1,9})([mhdw]?)$`)

// parseIdleMinutes reads minutes, or a number with m, h, d or w. Zero becomes 1, the shortest there is.
func parseIdleMinutes(s string) (int, error) {
	m := idleMinutes.FindStringSubmatch(strings.ToLower(strings.TrimSpace(s)))
	if m == nil {
		return 0, fmt.Errorf("%q is not an idle time; write minutes like 10, or 10m, 2h, 1d", s)
	}
	n, _ := strconv.Atoi(m[1])
	n *= map[string]int{"": 1, "m": 1, "h": 60, "d": 24 * 60, "w": 7 * 24 * 60}[m[2]]
	if n > 100*366*24*60 {
		return 0, fmt.Errorf("%q is more than 100 years; use false for no autostop", s)
	}
	return max(n, 1), nil
}

// positive reads a finite number above 0 and up to a million; the error continues a sentence.
func positive(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	switch {
	case err != nil || math.IsNaN(n):
		return 0, fmt.Errorf("is not a number")
	case n <= 0:
		return 0, fmt.Errorf("must be more than 0")
	case n > 1e6:
		return 0, fmt.Errorf("must be at most 1000000")
	}
	return n, nil
}

// num is the shortest decimal form.
func num(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

func plus(atLeast bool) string {
	if atLeast {
		return "+"
	}
	return ""
}
