package task

import (
	"fmt"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// readWith reads a single value with a text parser.
func readWith[T, V any](at func(*T) *V, parse func(string) (V, error)) func(val, *T) {
	return func(v val, t *T) {
		s, ok := v.text()
		if !ok {
			return
		}
		x, err := parse(s)
		if err != nil {
			v.failErr(err)
			return
		}
		*at(t) = x
	}
}

func sizeField[T any](name, doc string, at func(*T) *int) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "`256` (GB), `1TB`", schema: jsOr(jsRange(1, maxInt), jsText()),
		read: readWith(at, parseGB), write: func(t *T) any { return optional(*at(t)) },
	}
}

func legacyPlace(name string, set func(*Resources, string)) field[Resources] {
	return field[Resources]{
		name: name, hidden: true, schema: jsText(),
		read: func(v val, r *Resources) {
			if s, ok := v.str(); ok {
				if !cloudName.MatchString(strings.ToLower(s)) && s != anyPart && name == "cloud" || strings.Contains(s, "/") && name != "region" || s == "" {
					v.fail("%q is not the name of a %s", clip(s), name)
					return
				}
				set(r, s)
			}
		},
	}
}

// legacyPlaces are the parts of infra as keys of their own.
var legacyPlaces = []string{"cloud", "region", "zone"}

// givenKeys are the keys of a mapping whose values are not null.
func givenKeys(n *yaml.Node) map[string]*yaml.Node {
	keys := map[string]*yaml.Node{}
	if n.Kind != yaml.MappingNode {
		return keys
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if !yamldoc.IsNull(n.Content[i+1]) {
			keys[n.Content[i].Value] = n.Content[i]
		}
	}
	return keys
}

// afterResources does what needs more than one key of the mapping.
func afterResources(v val, r *Resources) {
	keys := givenKeys(v.n)
	for _, old := range legacyPlaces {
		k := keys[old]
		if k == nil {
			continue
		}
		if keys["infra"] != nil {
			val{v.p, k, v.path}.fail("%q can't be combined with infra; write infra: cloud/region/zone", old)
			return
		}
		if r.Infra.Cloud == "ssh" {
			r.Infra.Region = strings.TrimPrefix(r.Infra.Region, "ssh-")
		}
		whole, err := ParseInfra(r.Infra.String())
		if err != nil {
			val{v.p, k, v.path}.failErr(err)
			return
		}
		r.Infra = whole
	}
	for _, list := range []struct {
		key   string
		inner []Resources
	}{{"any_of", r.AnyOf}, {"ordered", r.Ordered}} {
		nodes := mapKeys(v.n)[list.key]
		for i := range list.inner {
			if nodes != nil && i < len(nodes.Content) {
				list.inner[i].completePlace(val{v.p, nodes.Content[i], fmt.Sprintf("%s[%d]", joinPath(v.path, list.key), i)}, r.Infra, keys)
			}
		}
	}
}

// completePlace gives an alternative that names some of cloud, region and zone the other ones from outside, as each key is
// inherited on its own.
func (r *Resources) completePlace(v val, outer Infra, outside map[string]*yaml.Node) {
	keys := givenKeys(v.n)
	said, inherits := false, false
	for _, name := range legacyPlaces {
		k := keys[name]
		switch {
		case k == nil:
		case outside["infra"] != nil:
			val{v.p, k, v.path}.fail("%q can't be combined with the infra outside; write infra: cloud/region/zone", name)
			return
		default:
			said = true
		}
		inherits = inherits || k == nil && outside[name] != nil
	}
	if !said || !inherits {
		return
	}
	place := r.Infra.Concrete()
	for i, part := range []*string{&place.Cloud, &place.Region, &place.Zone} {
		if name := legacyPlaces[i]; keys[name] == nil && outside[name] != nil {
			o := outer.Concrete()
			*part = []string{o.Cloud, o.Region, o.Zone}[i]
		}
	}
	if place.Cloud == "ssh" {
		place.Region = strings.TrimPrefix(place.Region, "ssh-")
	}
	whole, err := ParseInfra(place.String())
	if err != nil {
		v.failErr(err)
		return
	}
	r.Infra = whole
}

func alternatives(name, doc string, at func(*Resources) *[]Resources) field[Resources] {
	return field[Resources]{
		name: name, doc: doc, forms: "list of resources", schema: jsList(jsRef("resources")),
		read: func(v val, r *Resources) {
			if strings.Contains(v.path, "any_of[") || strings.Contains(v.path, "ordered[") {
				v.fail("alternatives can't be nested")
				return
			}
			v.items(func(_ int, c val) {
				var inner Resources
				if !c.isNull() {
					resourcesObject.read(c, &inner)
					afterResources(c, &inner)
				}
				*at(r) = append(*at(r), inner)
			})
		},
		write: func(r *Resources) any { return writeList(resourcesObject, *at(r)) },
	}
}

func readStrategy(v val, j *JobRecovery) {
	s, ok := v.text()
	if !ok {
		return
	}
	up := strings.ToUpper(s)
	for _, known := range RecoveryStrategies {
		if up == known {
			j.Strategy = up
			return
		}
	}
	v.fail("unknown recovery strategy %q%s; known are %s", clip(s), DidYouMean(up, RecoveryStrategies), strings.Join(RecoveryStrategies, ", "))
}

func readExitCodes(v val, j *JobRecovery) {
	seen := map[int]bool{}
	add := func(c val) {
		n, ok := c.integer(0, 255)
		switch {
		case !ok:
		case seen[n]:
			c.fail("exit code %d is listed twice", n)
		default:
			seen[n] = true
			j.RecoverOnExitCodes = append(j.RecoverOnExitCodes, n)
		}
	}
	if v.n.Kind == yaml.SequenceNode {
		v.items(func(_ int, c val) { add(c) })
	} else {
		add(v)
	}
	sort.Ints(j.RecoverOnExitCodes)
}

func readAccelerators(v val, r *Resources) {
	var out Accelerators
	switch v.n.Kind {
	case yaml.SequenceNode:
		out.Ordered = true
		v.items(func(_ int, c val) {
			if c.n.Kind == yaml.MappingNode && len(c.n.Content) != 2 {
				c.fail("an entry of a list names one accelerator")
				return
			}
			out.Options = append(out.Options, c.accelerators()...)
		})
	default:
		out.Options = v.accelerators()
	}
	seen := map[string]bool{}
	for _, a := range out.Options {
		if k := strings.ToLower(a.String()); seen[k] {
			v.fail("%s is listed twice", a)
		} else {
			seen[k] = true
		}
	}
	if len(out.Options) < 2 {
		out.Ordered = false
	} else if !out.Ordered { // a set has no order: keep one, so that equal sets are equal
		sort.Slice(out.Options, func(i, j int) bool { return out.Options[i].String() < out.Options[j].String() })
	}
	r.Accelerators = out
}

func (v val) accelerators() []Accelerator {
	if v.n.Kind != yaml.MappingNode {
		s, ok := v.text()
		if !ok {
			return nil
		}
		a, err := ParseAccelerator(s)
		if err != nil {
			v.failErr(err)
			return nil
		}
		return []Accelerator{a}
	}
	var out []Accelerator
	v.each(func(key string, kv, c val) {
		a, counted, err := parseAccelerator(key)
		if err != nil {
			kv.failErr(err)
			return
		}
		switch {
		case c.isNull() && !counted:
			a.Count = 1
		case c.isNull():
		case counted:
			c.fail("the count of %s is given twice", a.kind())
			return
		default:
			s, ok := c.text()
			if !ok {
				return
			}
			if a.Count, err = positive(s); err != nil {
				c.fail("the count %s %s", s, err)
				return
			}
		}
		out = append(out, a)
	})
	return out
}

func writeAccelerators(r *Resources) any {
	switch opts := r.Accelerators.Options; {
	case len(opts) == 0:
		return nil
	case len(opts) == 1:
		return opts[0].String()
	case r.Accelerators.Ordered:
		var list []string
		for _, a := range opts {
			list = append(list, a.String())
		}
		return list
	default:
		var m omap
		for _, a := range opts { // the count stays in the key: one name may come with several counts
			m = append(m, entry{a.String(), null{}})
		}
		return m
	}
}

func readPorts(v val, r *Resources) {
	add := func(c val) {
		s, ok := c.text()
		if !ok {
			return
		}
		p, err := ParsePorts(s)
		if err != nil {
			c.failErr(err)
			return
		}
		r.Ports = r.Ports.Union(p)
	}
	if v.n.Kind != yaml.SequenceNode {
		add(v)
		return
	}
	v.items(func(_ int, c val) { add(c) })
}

func readImages(v val, r *Resources) {
	check := func(c val) (string, bool) {
		s, ok := c.str()
		if ok && (strings.TrimSpace(s) != s || s == "" || s == "docker:" || strings.ContainsAny(s, " \t\n")) {
			c.fail("%q is not an image", clip(s))
			ok = false
		}
		return s, ok
	}
	r.Images = map[string]string{}
	if v.n.Kind != yaml.MappingNode {
		if s, ok := check(v); ok {
			r.Images[""] = s
		}
		return
	}
	docker := false
	v.each(func(key string, kv, c val) {
		s, ok := check(c)
		switch {
		case !ok:
			return
		case key == "":
			kv.fail("a key must be a region, or the word docker")
			return
		case key == "docker":
			s = strings.TrimPrefix(s, "docker:")
		case strings.HasPrefix(s, "docker:"):
			docker = true
		}
		r.Images[key] = s
	})
	if docker && r.Images["docker"] != "" {
		v.fail(`the key "docker" can't be combined with docker: images for regions`)
	}
	if len(r.Images) == 0 {
		r.Images = nil
	}
}

func writeImages(r *Resources) any {
	if s, ok := r.Images[""]; ok {
		return s
	}
	return textMap(r.Images)
}

func readAutostop(v val, r *Resources) {
	f := autostopForm{Autostop: Autostop{Enabled: true}}
	switch {
	case v.n.Kind == yaml.MappingNode:
		autostopObject.read(v, &f)
		if f.hook != "" {
			event := "stop"
			if f.Down {
				event = "down"
			}
			if f.hookTimeout == 0 {
				f.hookTimeout = DefaultHookTimeoutSec
			}
			v.p.hooks = append(v.p.hooks, Hook{Run: f.hook, Events: []string{event}, TimeoutSeconds: f.hookTimeout})
			v.p.warnings = append(v.p.warnings, fmt.Sprintf("%s: hook is deprecated; it was taken as an entry of config.hooks", v.path))
		}
	case v.isBoolean():
		f.Enabled, _ = v.boolean()
	default:
		s, ok := v.text()
		if !ok {
			return
		}
		n, err := parseIdleMinutes(s)
		if err != nil {
			v.failErr(err)
			return
		}
		f.IdleMinutes = n
	}
	if f.Enabled && f.IdleMinutes == 0 {
		f.IdleMinutes = DefaultAutostopMins
	}
	r.Autostop = &f.Autostop
}

func writeAutostop(a *Autostop) any {
	if a == nil {
		return nil
	}
	if !a.Enabled {
		return false
	}
	return writeObject(autostopObject, &autostopForm{Autostop: *a})
}

func checkDiskVolume(v val, d DiskVolume) {
	if d.Path == "" {
		v.fail("path is missing")
	}
	if d.StorageType == "network" && d.Name == "" {
		v.fail("a network volume needs the name of an existing disk")
	}
}
