package task

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// hostile are inputs that cost a careless parser time or memory.
var hostile = map[string]string{
	"alias bomb":     "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
	"self alias":     "a: &a {b: *a}",
	"deep flow":      strings.Repeat("[", 100_000),
	"deep maps":      strings.Repeat("{a: ", 50_000),
	"deep dashes":    strings.Repeat("- ", 50_000) + "a",
	"deep questions": strings.Repeat("? ", 50_000) + "a",
	"many documents": strings.Repeat("---\na: 1\n", 20_000),
	"many keys":      "envs:\n" + manyKeys(40_000),
	"long key":       "a" + strings.Repeat("b", 500_000) + ": {" + strings.Repeat("c: {", 90) + strings.Repeat("}", 91),
	"expansion":      "envs: {A: '" + strings.Repeat("x", 300_000) + "'}\nfile_mounts: {/a: '" + strings.Repeat("$A", 200_000) + "'}",
	"alternatives":   "resources: {accelerators: {" + manyAccelerators(3000) + "}, any_of: [" + strings.Repeat("{infra: aws},", 3000) + "]}",
	"too big":        "run: '" + strings.Repeat("x", 1<<20) + "'",
	"merge bomb":     "a: &a {" + strings.Repeat("k: 1, ", 1) + "}\nb: {<<: [" + strings.Repeat("*a,", 50_000) + "]}",
	"anchors":        strings.Repeat("- &a x\n- *a\n", 30_000),
	"indent steps":   indentSteps(1200),
	"quotes":         "run: \"" + strings.Repeat("\\x41", 200_000) + "\"",
	"comments":       strings.Repeat("# c\n", 200_000) + "run: x",
	"tags":           "a: " + strings.Repeat("!!str ", 50_000),
	"flow pairs":     "a: [" + strings.Repeat("b: c, ", 60_000) + "]",
	"unclosed quote": "a: \"" + strings.Repeat("b\n", 200_000),
	"block scalar":   "a: |\n" + strings.Repeat(" b\n", 200_000),
	"plain lines":    "a: b\n" + strings.Repeat(" c\n", 200_000),
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := 0; i < n; i++ {
		b.WriteString("  A")
		b.WriteString(num(float64(i)))
		b.WriteString(": 1\n")
	}
	return b.String()
}

func manyAccelerators(n int) string {
	var b strings.Builder
	for i := 0; i < n; i++ {
		b.WriteString("G" + num(float64(i)) + ": 1, ")
	}
	return b.String()
}

func indentSteps(n int) string {
	var b strings.Builder
	for i := 0; i < n; i++ {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// TestHostileInputIsCheap measures no time limit of its own: a bomb that got through would not come back for minutes.
func TestHostileInputIsCheap(t *testing.T) {
	for name, text := range hostile {
		start := time.Now()
		f, err := Parse("t.yaml", []byte(text), ParseOptions{})
		if err == nil {
			f.Tasks[0].Candidates()
		}
		if err != nil && len(err.Error()) > 20_000 {
			t.Errorf("%s: a message of %d bytes", name, len(err.Error()))
		}
		t.Logf("%s: %v", name, time.Since(start).Round(time.Millisecond))
	}
	for _, name := range []string{"alias bomb", "self alias", "deep flow", "deep maps", "many documents", "expansion", "alternatives", "too big"} {
		if _, err := Parse("t.yaml", []byte(hostile[name]), ParseOptions{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"run: echo\nresources: {infra: aws/r/z, gpus: [H100:8, A100], ports: '1-3,5', autostop: 2h, any_of: [{cpus: 4+}]}",
		"name: p\n---\nrun: a\n---\nrun: b", "name: g\nexecution: parallel\nprimary_tasks: [a]\ntermination_delay: 5m\n---\nname: a\n---\nname: b",
		"envs: {A: 1, B: null}\nsecrets: {C: x}\nfile_mounts: {/$A: '${B}', /b: {name: x, source: [a]}}\nvolumes: {/v: {size: 1Gi}}",
		"service: {readiness_probe: {path: /, post_data: {a: 1}}, replica_policy: {min_replicas: 1}}\nresources: {ports: 80}",
		"checkpoint: {path: c, every: 5m}\narray: {values: {A: [1, 2]}}\nschedule: 0 3 * * *\nnotify: [http://x]", "a: &a [*a]", "? [a]\n: b", "<<: {run: x}", "run: !!binary aGk=", "run: \"\\u0085\"\nsetup: |2\n   x\n",
		"config: {hooks: [{run: x}], x: {y: 0x1F, z: 1e400, w: .nan}}", "resources: {image_id: {docker: a}, labels: {a: }}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("t.yaml", data, ParseOptions{Vars: Vars{Envs: map[string]string{"B": "b"}}})
		if err != nil {
			if err.Error() == "" {
				t.Error("an empty message")
			}
			return
		}
		text := file.Render(SecretsInline)
		again, err := Parse("again.yaml", text, ParseOptions{})
		if err != nil {
			t.Fatalf("rendering does not parse: %v\n%s", err, text)
		}
		if again.Kind != file.Kind || len(again.Tasks) != len(file.Tasks) {
			t.Fatalf("another file:\n%s", text)
		}
		for i, task := range file.Tasks {
			task.src, again.Tasks[i].src = nil, nil
			if s := task.Secrets; s != nil { // a reference that got its value is rendered as a plain secret
				for k, v := range s {
					if v.Inline {
						v.Ref = ""
						s[k] = v
					}
				}
			}
			if !reflect.DeepEqual(task, again.Tasks[i]) {
				t.Fatalf("another task:\n%s\n got %+v\nwant %+v", text, again.Tasks[i], task)
			}
			task.Candidates()
			CheckSupported(task, VerbLaunch, nil)
			task.Render(SecretsRedacted)
		}
	})
}

func FuzzDotenv(f *testing.F) {
	for _, s := range []string{"A=1\n", "export B='x'\nC=\"a\\nb\"", "A=\"", "# c\nA = b # d", "A=\"x\ny\"\n", "=\n", "A", "A=1\nB=${A}${X:-y}\nC=\"${A} \\${B}\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := ParseDotenv("f", data, func(k string) (string, bool) { return k, k != "X" })
		if err != nil && err.Error() == "" {
			t.Error("an empty message")
		}
		for k := range got {
			if !envName.MatchString(k) {
				t.Errorf("name %q", k)
			}
		}
	})
}
