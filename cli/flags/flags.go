// Package flags holds the kinds of command-line flags that the standard ones lack: --x/--no-x pairs, flags that may be
// left unset, and choices. It parses and does nothing.
package flags

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// boolValue sets *p to val when the flag is given.
type boolValue struct {
	p   func(bool)
	val bool
}

func (b *boolValue) Set(s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	b.p(v == b.val)
	return nil
}
func (b *boolValue) String() string   { return "" }
func (b *boolValue) Type() string     { return "bool" }
func (b *boolValue) IsBoolFlag() bool { return true }

func pair(fs *pflag.FlagSet, set func(bool), name, short, usage string) {
	f := fs.VarPF(&boolValue{set, true}, name, short, usage+" (or --no-"+name+")")
	f.NoOptDefVal = "true"
	n := fs.VarPF(&boolValue{set, false}, "no-"+name, "", "the opposite of --"+name)
	n.NoOptDefVal = "true"
	n.Hidden = true
}

// Pair adds --name and --no-name; the last one given wins.
func Pair(fs *pflag.FlagSet, p *bool, name, short string, def bool, usage string) {
	*p = def
	pair(fs, func(v bool) { *p = v }, name, short, usage)
}

// Tri adds --name and --no-name that leave *p nil when neither is given.
func Tri(fs *pflag.FlagSet, p **bool, name, usage string) {
	pair(fs, func(v bool) { *p = &v }, name, "", usage)
}

type intValue struct {
	p        **int
	min, max int
}

func (i *intValue) Set(s string) error {
	v, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		return fmt.Errorf("%q is no whole number", s)
	}
	if v < i.min {
		return fmt.Errorf("must be %d or more", i.min)
	}
	if v > i.max {
		return fmt.Errorf("must be %d or less", i.max)
	}
	*i.p = &v
	return nil
}
func (i *intValue) String() string { return "" }
func (i *intValue) Type() string   { return "int" }

// Int adds a whole number of at least min that stays nil when it is not given.
func Int(fs *pflag.FlagSet, p **int, name, short string, min int, usage string) {
	fs.VarP(&intValue{p, min, 1 << 31}, name, short, usage)
}

type choiceValue struct {
	p       *string
	choices []string
}

func (c *choiceValue) Set(s string) error {
	for _, ch := range c.choices {
		if strings.EqualFold(ch, s) {
			*c.p = ch
			return nil
		}
	}
	return fmt.Errorf("must be one of %s", strings.Join(c.choices, ", "))
}
func (c *choiceValue) String() string { return *c.p }
func (c *choiceValue) Type() string   { return strings.Join(c.choices, "|") }

// Choice adds a flag that takes one of some words, in any case.
func Choice(fs *pflag.FlagSet, p *string, name, short, def string, choices []string, usage string) {
	*p = def
	fs.VarP(&choiceValue{p, choices}, name, short, usage)
}

// Config adds --config, whose values are layers of configuration.
func Config(fs *pflag.FlagSet, p *[]string) {
	fs.StringArrayVar(p, "config", nil, "a config `FILE or KEY=VALUE` (dotted key) on top of the other layers; repeatable")
}

// Output adds -o/--output {table,json}.
func Output(fs *pflag.FlagSet, p *string) {
	Choice(fs, p, "output", "o", "table", []string{"table", "json"}, "output format")
}
