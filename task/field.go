package task

import (
	"sort"
	"sync"
)

// field is one row of the table that drives reading, suggestions, rendering, the JSON Schema and the reference.
type field[T any] struct {
	name   string
	alias  []string  // other accepted spellings
	forms  string    // accepted forms, for the reference
	def    string    // default, for the reference
	doc    string    // what it means, one or two sentences
	schema js        // of the value
	later  []Feature // features one of which using it may need, for the reference
	ours   bool      // not part of the compatible surface
	read   func(v val, t *T)
	write  func(t *T) any // nil: leave out; see render.go for the types
	null   bool           // read sees null too
	hidden bool           // internal: accepted, neither documented nor suggested
}

// object is a table of fields.
type object[T any] struct {
	title  string
	doc    string
	fields []field[T]
	open   bool                          // other keys are let through
	other  func(v val, key string, t *T) // takes a key of an open object
	rest   func(t *T) map[string]any     // gives them back
	hints  map[string]string             // for keys people put here by mistake
}

func (o *object[T]) find(key string) *field[T] {
	for i := range o.fields {
		f := &o.fields[i]
		if f.name == key {
			return f
		}
		for _, a := range f.alias {
			if a == key {
				return f
			}
		}
	}
	return nil
}

func (o *object[T]) names() []string {
	var out []string
	for _, f := range o.fields {
		if !f.hidden {
			out = append(append(out, f.name), f.alias...)
		}
	}
	sort.Strings(out)
	return out
}

// read fills t from a mapping.
func (o *object[T]) read(v val, t *T) {
	given := map[string]string{}
	v.each(func(key string, kv, c val) {
		f := o.find(key)
		switch {
		case f == nil && o.open:
			if o.other != nil {
				o.other(c, key, t)
			}
			return
		case f == nil && o.hints[key] != "":
			kv.fail("unknown field %q; %s", key, o.hints[key])
			return
		case f == nil:
			kv.fail("unknown field %q%s", clip(key), DidYouMean(key, o.names()))
			return
		}
		if first, twice := given[f.name]; twice {
			kv.fail("%q and %q mean the same; give one of them", first, key)
			return
		}
		given[f.name] = key
		if key != f.name { // messages and positions go by the canonical name
			v.p.src.pos[joinPath(v.path, f.name)] = position{c.n.Line, c.n.Column}
		}
		if c.isNull() && !f.null {
			return
		}
		f.read(c, t)
	})
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:57] + "..."
	}
	return s
}

// tables makes the tables when they are first needed, so that commands without a task don't pay for them. Everything
// that reads, renders or describes a task calls it first.
var tables = sync.OnceFunc(func() {
	buildResources()
	buildFiles()
	buildServing()
	buildOwn()
	buildTask()
})
