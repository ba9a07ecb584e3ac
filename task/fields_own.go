package task

import (
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// MaxArrayElements bounds an array.
const MaxArrayElements = 100_000

var overlapWords = []string{"skip", "buffer_one", "buffer_all", "cancel_other", "allow_all"}

var (
	checkpointObject *object[Checkpoint]
	arrayObject      *object[Array]
	scheduleObject   *object[Schedule]
	notifyObject     *object[Notify]
)

func buildOwn() {
	checkpointObject = &object[Checkpoint]{
		title: "checkpoint", doc: "Saves a folder of the node, so that a recovered job goes on where it was.",
		fields: []field[Checkpoint]{
			textField("path", "Folder on the node; needed.", func(c *Checkpoint) *string { return &c.Path }),
			textField("to", "Address of a bucket, or of a folder in one, like s3://bucket/runs.", func(c *Checkpoint) *string { return &c.To }).defaults("the server's own store"),
			durationField("every", "Time between two saves.", func(c *Checkpoint) *time.Duration { return &c.Every }).defaults("only on notices, before a stop and on demand"),
			textField("signal", "Signal sent to the command before a save, like USR1.", func(c *Checkpoint) *string { return &c.Signal }),
			textField("on_preempt", "Command run when the infra announces a preemption.", func(c *Checkpoint) *string { return &c.OnPreempt }),
			intField("keep", "Complete checkpoints that are kept.", 1, 1000, func(c *Checkpoint) *int { return &c.Keep }).defaults("3"),
			wordField("scope", "Save the folder of the head node only, or of all nodes together.", []string{"head", "all"}, func(c *Checkpoint) *string { return &c.Scope }).defaults("head"),
		},
	}
	arrayObject = &object[Array]{
		title: "array", doc: "Runs the task once for each element, on clusters that are reused.",
		fields: []field[Array]{
			intField("count", "Number of elements; not with values.", 1, MaxArrayElements, func(a *Array) *int { return &a.Count }),
			{
				name: "values", forms: "map of environment name to list", doc: "The elements are all combinations of the values.", schema: jsMapOf(jsList(js{"type": []string{"string", "number", "boolean"}})),
				read: readArrayValues, write: func(a *Array) any {
					if len(a.Values) == 0 {
						return nil
					}
					var m omap
					for _, k := range sortedKeys(a.Values) {
						m = append(m, entry{k, a.Values[k]})
					}
					return m
				},
			},
			intField("parallel", "Clusters used at the same time.", 1, 10_000, func(a *Array) *int { return &a.Parallel }).defaults("decided by the server"),
			intField("retries", "How often one element is tried again.", 0, 1000, func(a *Array) *int { return &a.Retries }).defaults("0"),
		},
	}
	scheduleObject = &object[Schedule]{
		title: "schedule", doc: "Starts the job again and again.",
		fields: []field[Schedule]{
			textField("cron", "Five fields: minute, hour, day of month, month, day of week.", func(s *Schedule) *string { return &s.Cron }),
			textField("timezone", "Name like Europe/Berlin.", func(s *Schedule) *string { return &s.Timezone }).defaults("UTC"),
			wordField("overlap", "What happens when the last start still runs.", overlapWords, func(s *Schedule) *string { return &s.Overlap }).defaults("skip"),
			durationField("catch_up", "Missed starts this recent are made up for.", func(s *Schedule) *time.Duration { return &s.CatchUp }),
			boolField("paused", "Begin paused.", func(s *Schedule) *bool { return &s.Paused }),
		},
	}
	notifyObject = &object[Notify]{
		title: "notify[]", doc: "Posts changes of state to a web address.",
		fields: []field[Notify]{
			textField("url", "http or https address; needed.", func(n *Notify) *string { return &n.URL }),
			{
				name: "events", forms: "list of states", def: "all", doc: "States that are posted, like succeeded or failed.", schema: jsTexts(),
				read: func(v val, n *Notify) {
					list, _ := v.texts()
					for _, s := range list {
						n.Events = append(n.Events, strings.ToLower(s))
					}
				},
				write: func(n *Notify) any {
					if len(n.Events) == 0 {
						return nil
					}
					return n.Events
				},
			},
			textField("secret", "Entry of `secrets` whose value signs the posts.", func(n *Notify) *string { return &n.Secret }),
		},
	}
}

var signalName = regexp.MustCompile(`^[A-Z]+[0-9]*$`)

func readCheckpoint(v val, t *Task) {
	c := &Checkpoint{}
	if v.n.Kind == yaml.MappingNode {
		checkpointObject.read(v, c)
	} else if s, ok := v.str(); ok {
		c.Path = s
	} else {
		return
	}
	c.Signal = strings.TrimPrefix(strings.ToUpper(c.Signal), "SIG")
	switch {
	case c.Path == "":
		v.fail("path is missing")
	case c.To != "" && !IsBucketURL(c.To):
		v.fail("to: %q is not the URL of a bucket", clip(c.To))
	case c.Every != 0 && c.Every < time.Second:
		v.fail("every must be at least one second")
	case c.Signal != "" && !signalName.MatchString(c.Signal):
		v.fail("%q is not the name of a signal", clip(c.Signal))
	}
	t.Checkpoint = c
}

func readArrayValues(v val, a *Array) {
	a.Values = map[string][]string{}
	v.each(func(key string, kv, c val) {
		if !envName.MatchString(key) {
			kv.fail("%q is not an environment name (letters, digits and _, not starting with a digit)", clip(key))
			return
		}
		var list []string
		c.items(func(_ int, e val) {
			if s, ok := e.text(); ok {
				list = append(list, s)
			}
		})
		if len(list) == 0 {
			c.fail("has no values")
		}
		a.Values[key] = list
	})
	if len(a.Values) == 0 {
		v.fail("names no value")
	}
}

// Elements is the number of elements; 0 when it is more than MaxArrayElements.
func (a *Array) Elements() int {
	if len(a.Values) == 0 {
		return a.Count
	}
	n := 1
	for _, list := range a.Values {
		if n *= len(list); n > MaxArrayElements {
			return 0
		}
	}
	return n
}

// Element returns the environment of element i. The last name in alphabetical order varies fastest.
func (a *Array) Element(i int) map[string]string {
	env := map[string]string{}
	keys := sortedKeys(a.Values)
	for k := len(keys) - 1; k >= 0; k-- {
		list := a.Values[keys[k]]
		env[keys[k]] = list[i%len(list)]
		i /= len(list)
	}
	return env
}

func readArray(v val, t *Task) {
	a := &Array{}
	if v.n.Kind == yaml.MappingNode {
		arrayObject.read(v, a)
	} else if n, ok := v.integer(1, MaxArrayElements); ok {
		a.Count = n
	} else {
		return
	}
	switch {
	case a.Count == 0 && len(a.Values) == 0:
		v.fail("needs count or values")
	case a.Count > 0 && len(a.Values) > 0:
		v.fail("count and values can't be combined")
	case a.Elements() == 0:
		v.fail("has more than %d elements", MaxArrayElements)
	}
	t.Array = a
}

func readSchedule(v val, t *Task) {
	s := &Schedule{}
	if v.n.Kind == yaml.MappingNode {
		scheduleObject.read(v, s)
	} else if c, ok := v.str(); ok {
		s.Cron = c
	} else {
		return
	}
	if err := checkCron(s.Cron); err != "" {
		v.fail("%s", err)
	}
	if strings.ContainsAny(s.Timezone, " \t\n") || strings.HasPrefix(s.Timezone, "/") || strings.Contains(s.Timezone, "..") {
		v.fail("%q is not a time zone; write a name like Europe/Berlin", clip(s.Timezone))
	}
	t.Schedule = s
}

func writeSchedule(t *Task) any {
	s := t.Schedule
	if s == nil {
		return nil
	}
	if *s == (Schedule{Cron: s.Cron}) {
		return s.Cron
	}
	return writeObject(scheduleObject, s)
}

var cronRanges = []struct {
	name   string
	lo, hi int
	words  []string
}{
	{"minute", 0, 59, nil}, {"hour", 0, 23, nil}, {"day of month", 1, 31, nil},
	{"month", 1, 12, []string{"", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{"day of week", 0, 7, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

// checkCron says what is wrong with a cron expression, or nothing.
func checkCron(s string) string {
	switch s {
	case "@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually":
		return ""
	}
	parts := strings.Fields(s)
	if len(parts) != 5 {
		return "a schedule has five fields (minute hour day-of-month month day-of-week), like \"0 3 * * *\""
	}
	for i, p := range parts {
		r := cronRanges[i]
		for _, item := range strings.Split(p, ",") {
			span, step, stepped := strings.Cut(item, "/")
			if n, err := strconv.Atoi(step); stepped && (err != nil || n < 1 || n > r.hi) {
				return strconv.Quote(clip(item)) + " is not a step of the " + r.name
			}
			if span == "*" {
				continue
			}
			from, to, ranged := strings.Cut(span, "-")
			a, okA := cronNumber(from, r.words)
			b, okB := a, true
			if ranged {
				b, okB = cronNumber(to, r.words)
			}
			if !okA || !okB || a < r.lo || b > r.hi || a > b {
				return strconv.Quote(clip(item)) + " is not a " + r.name + " (" + rangeText(r.lo, r.hi) + ")"
			}
		}
	}
	return ""
}

func cronNumber(s string, words []string) (int, bool) {
	for i, w := range words {
		if w != "" && strings.EqualFold(w, s) {
			return i, true
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

func readNotify(v val, t *Task) {
	one := func(c val) {
		var n Notify
		if c.n.Kind == yaml.MappingNode {
			notifyObject.read(c, &n)
		} else if s, ok := c.str(); ok {
			n.URL = s
		} else {
			return
		}
		if u, err := url.Parse(n.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			c.fail("%q is not an http or https address", clip(n.URL))
		}
		t.Notify = append(t.Notify, n)
	}
	if v.n.Kind == yaml.SequenceNode {
		v.items(func(_ int, c val) { one(c) })
		return
	}
	one(v)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
