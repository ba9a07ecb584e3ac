package task

import (
	"strings"
	"time"
)

// js is a fragment of JSON Schema.
type js map[string]any

func jsText() js  { return js{"type": "string"} }
func jsBool() js  { return js{"type": "boolean"} }
func jsAny() js   { return js{} }
func jsNull() js  { return js{"type": "null"} }
func jsInt() js   { return js{"type": "integer"} }
func jsNum() js   { return js{"type": "number"} }
func jsMap() js   { return js{"type": "object"} }
func jsTexts() js { return js{"type": "array", "items": jsText()} }

func jsRange(lo, hi int) js {
	out := js{"type": "integer", "minimum": lo}
	if hi != maxInt {
		out["maximum"] = hi
	}
	return out
}

func jsWords(words ...string) js { return js{"type": "string", "enum": words} }

func jsPattern(p string) js { return js{"type": "string", "pattern": p} }

func jsMapOf(value js) js { return js{"type": "object", "additionalProperties": value} }

func jsTextMap() js {
	return jsMapOf(js{"type": []string{"string", "number", "boolean", "null"}})
}

func jsOr(alternatives ...js) js { return js{"anyOf": alternatives} }

func jsList(item js) js { return js{"type": "array", "items": item} }

func jsRef(title string) js { return js{"$ref": "#/definitions/" + definition(title)} }

// optional is nil for a zero value, which leaves the field out.
func optional[V comparable](v V) any {
	var zero V
	if v == zero {
		return nil
	}
	return v
}

func deref[V any](p *V) any {
	if p == nil {
		return nil
	}
	return *p
}

func ptr[V any](v V) *V { return &v }

func textField[T any](name, doc string, at func(*T) *string) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "text", schema: jsText(),
		read: func(v val, t *T) {
			if s, ok := v.str(); ok {
				*at(t) = s
			}
		},
		write: func(t *T) any { return optional(*at(t)) },
	}
}

func wordField[T any](name, doc string, words []string, at func(*T) *string) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "one of `" + strings.Join(words, "`, `") + "`", schema: jsWords(words...),
		read: func(v val, t *T) {
			if s, ok := v.oneOf(words...); ok {
				*at(t) = s
			}
		},
		write: func(t *T) any { return optional(*at(t)) },
	}
}

func boolField[T any](name, doc string, at func(*T) *bool) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "`true`, `false`", schema: jsBool(), def: "false",
		read: func(v val, t *T) {
			if b, ok := v.boolean(); ok {
				*at(t) = b
			}
		},
		write: func(t *T) any { return optional(*at(t)) },
	}
}

func boolPtrField[T any](name, doc string, at func(*T) **bool) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "`true`, `false`", schema: jsBool(),
		read: func(v val, t *T) {
			if b, ok := v.boolean(); ok {
				*at(t) = &b
			}
		},
		write: func(t *T) any { return deref(*at(t)) },
	}
}

func intField[T any](name, doc string, lo, hi int, at func(*T) *int) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "whole number, " + rangeText(lo, hi), schema: jsRange(lo, hi),
		read: func(v val, t *T) {
			if n, ok := v.integer(lo, hi); ok {
				*at(t) = n
			}
		},
		write: func(t *T) any { return optional(*at(t)) },
	}
}

func intPtrField[T any](name, doc string, lo, hi int, at func(*T) **int) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "whole number, " + rangeText(lo, hi), schema: jsRange(lo, hi),
		read: func(v val, t *T) {
			if n, ok := v.integer(lo, hi); ok {
				*at(t) = &n
			}
		},
		write: func(t *T) any { return deref(*at(t)) },
	}
}

func positiveField[T any](name, doc string, at func(*T) *float64) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "number more than 0", schema: js{"type": "number", "exclusiveMinimum": 0},
		read: func(v val, t *T) {
			if n, ok := v.number(0, true); ok {
				*at(t) = n
			}
		},
		write: func(t *T) any { return optional(*at(t)) },
	}
}

func numberPtrField[T any](name, doc string, at func(*T) **float64) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "number, at least 0", schema: js{"type": "number", "minimum": 0},
		read: func(v val, t *T) {
			if n, ok := v.number(0, false); ok {
				*at(t) = &n
			}
		},
		write: func(t *T) any { return deref(*at(t)) },
	}
}

func durationField[T any](name, doc string, at func(*T) *time.Duration) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "duration: `30s`, `10m`, `2h`, `7d`, or seconds", schema: jsOr(jsRange(0, maxInt), jsText()),
		read: func(v val, t *T) {
			if d, ok := v.duration(); ok {
				*at(t) = d
			}
		},
		write: func(t *T) any {
			if *at(t) == 0 {
				return nil
			}
			return FormatDuration(*at(t))
		},
	}
}

func (v val) duration() (time.Duration, bool) {
	s, ok := v.text()
	if !ok {
		return 0, false
	}
	d, err := ParseDuration(s)
	if err != nil {
		v.failErr(err)
		return 0, false
	}
	return d, true
}

func textMapField[T any](name, doc string, at func(*T) *map[string]string) field[T] {
	return field[T]{
		name: name, doc: doc, forms: "map of text to text", schema: jsTextMap(),
		read:  func(v val, t *T) { *at(t) = v.stringMap() },
		write: func(t *T) any { return textMap(*at(t)) },
	}
}

func textMap(m map[string]string) any {
	if len(m) == 0 {
		return nil
	}
	return m
}

// with changes a row made by one of the constructors.
func (f field[T]) with(change func(*field[T])) field[T] {
	change(&f)
	return f
}

func (f field[T]) defaults(def string) field[T] {
	f.def = def
	return f
}

func (f field[T]) needs(features ...Feature) field[T] {
	f.later = features
	return f
}

func (f field[T]) own() field[T] {
	f.ours = true
	return f
}
