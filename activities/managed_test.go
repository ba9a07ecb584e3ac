package activities

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/filesync"
)

// TestManagedNames holds where the names of a job and of its tasks come from, and what is no name.
func TestManagedNames(t *testing.T) {
	const id = "3f0c9a52-6f0e-4b7e-9a55-0d4f3f9e8a11"
	a := &Activities{}
	for _, tc := range []struct {
		task, name, job string
		tasks           string
		refused         string
	}{
		{task: "run: x", job: "sky-3f0c-ana", tasks: "sky-3f0c-ana"},
		{task: "name: own\nrun: x", job: "own", tasks: "own"},
		{task: "name: own\nrun: x", name: "given", job: "given", tasks: "own"},
		{task: "run: x\n---\nrun: y", job: "sky-3f0c-ana", tasks: "sky-3f0c-ana-0 sky-3f0c-ana-1"},
		{task: "name: a\nrun: x\n---\nrun: y", job: "a", tasks: "a a-1"},
		{task: "name: p\n---\nrun: x\n---\nname: b\nrun: y", job: "p", tasks: "p-0 b"},
		{task: "run: x\n---\nrun: y", name: "given", job: "given", tasks: "given-0 given-1"},
		{task: "name: g\nexecution: parallel\n---\nname: a\n---\nname: b", name: "g___h", job: "g___h", tasks: "a b"},
		{task: "run: x", name: "../../etc", refused: "is not a valid name"},
		{task: "run: x", name: "a\x00b", refused: "is not a valid name"},
		{task: "run: x", name: strings.Repeat("a", 300), refused: "more than 255 characters"},
		{task: "run: x\n---\nrun: y", name: "a---b", refused: "is not a valid name"},
	} {
		s, err := a.ParseManaged(t.Context(), api.JobsLaunchBody{Base: api.Base{RequestID: id, User: "Ana"}, Task: tc.task, Name: tc.name})
		if err != nil {
			t.Fatal(err)
		}
		if tc.refused != "" || s.Error != nil {
			if s.Error == nil || s.Error.Kind != api.ErrInvalid || tc.refused == "" || !strings.Contains(s.Error.Message, tc.refused) {
				t.Errorf("%q called %.20q: %v", tc.task, tc.name, s.Error)
			}
			continue
		}
		var names []string
		for _, spec := range s.Tasks {
			names = append(names, spec.Name)
		}
		if got := strings.Join(names, " "); s.Name != tc.job || got != tc.tasks {
			t.Errorf("%q called %q: %s with %s, want %s with %s", tc.task, tc.name, s.Name, got, tc.job, tc.tasks)
		}
	}
	for n, ok := range map[int]bool{-1: false, 0: true, 1: true, MaxNumJobs: true, MaxNumJobs + 1: false} {
		if s, err := a.ParseManaged(t.Context(), api.JobsLaunchBody{Base: api.Base{RequestID: id}, Task: "run: x", NumJobs: n}); err != nil || (s.Error == nil) != ok {
			t.Errorf("%d jobs: %v %v", n, s.Error, err)
		}
	}
}

func TestManagedTaskThatAsksForWhatComesLater(t *testing.T) {
	a := &Activities{}
	for text, want := range map[string]string{
		"run: x\nevent_callback: echo":                           "event_callback",
		"resources: {job_recovery: {max_restart_on_errors: 1}}":  `did you mean "max_restarts_on_errors"?`,
		"file_mounts: {/d: 's3://bucket'}":                       "file_mounts./d",
		"config: {kubernetes: {pod_config: {a: b}}}\nrun: x":     "config.kubernetes.pod_config",
		"managed_secrets: [A]\nrun: x":                           "managed_secrets",
		"resources: {image_id: 'docker:ubuntu:22.04'}\nrun: x\n": "resources.image_id",
	} {
		s, err := a.ParseManaged(t.Context(), api.JobsLaunchBody{Task: text})
		if err != nil || s.Error == nil || !strings.Contains(s.Error.Message, want) {
			t.Errorf("%s: %v %v", text, s.Error, err)
		}
	}
}

// TestFilesThatAreNotKept: a submission that names content which was never uploaded makes nothing, and keeps nothing waiting.
func TestFilesThatAreNotKept(t *testing.T) {
	s, err := artifact.Open(t.TempDir(), artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id, missing, err := s.PutManifest(t.Context(), &filesync.Manifest{})
	if err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	a := &Activities{Artifacts: s}
	for _, c := range []struct{ dst, manifest, want string }{
		{"~/x", id, ""}, {"~/x", "../../x", "no manifest's id"}, {"~/x", "", "no manifest's id"}, {"~/x", strings.Repeat("0", 64), "is not kept here"}, {"", id, "is no destination"}, {"a\x00", id, "is no destination"},
	} {
		files := []api.FileMount{{Dst: c.dst, Manifest: c.manifest}}
		e, err := a.checkFiles(files)
		if err != nil || (e == nil) != (c.want == "") || e != nil && !strings.Contains(e.Message, c.want) {
			t.Errorf("%q %.10q: %v %v", c.dst, c.manifest, e, err)
		}
		spec, err := a.ParseManaged(t.Context(), api.JobsLaunchBody{Task: "run: x", FileMounts: map[int][]api.FileMount{0: files}})
		if err != nil || (spec.Error == nil) != (c.want == "") {
			t.Errorf("%q %.10q: %v %v", c.dst, c.manifest, spec.Error, err)
		}
	}
	spec, err := a.ParseManaged(t.Context(), api.JobsLaunchBody{Task: "run: x", FileMounts: map[int][]api.FileMount{1: {{Dst: "~/x", Manifest: id}}}})
	if err != nil || spec.Error == nil || !strings.Contains(spec.Error.Message, "there is no task 1") {
		t.Errorf("%v %v", spec.Error, err)
	}
}

// TestManagedSecrets: each task of a file is given its own secrets, and one without a value makes nothing.
func TestManagedSecrets(t *testing.T) {
	a := &Activities{}
	refs := map[string]string{"A": "secret://a", "B": "secret://b", "C": "secret://c"}
	spec, err := a.ParseManaged(t.Context(), api.JobsLaunchBody{Task: "secrets: {A: null}\nrun: x\n---\nsecrets: {A: null, B: null}\nrun: y\n---\nrun: z\n", SecretRefs: refs})
	if err != nil || spec.Error != nil {
		t.Fatal(spec.Error, err)
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	spec = ManagedSpec{}
	if err := json.Unmarshal(raw, &spec); err != nil { // as it comes out of a history
		t.Fatal(err)
	}
	for i, want := range []string{"A C", "A B C", "C"} {
		if got := strings.Join(sortedKeys(spec.Tasks[i].SecretRefs(refs)), " "); got != want {
			t.Errorf("task %d is given %s, want %s", i, got, want)
		}
	}
	if spec, _ = a.ParseManaged(t.Context(), api.JobsLaunchBody{Task: "run: x", SecretRefs: refs}); len(spec.Tasks[0].SecretRefs(refs)) != 3 {
		t.Errorf("%+v", spec.Tasks)
	}
	for _, b := range []api.JobsLaunchBody{{Task: "secrets: {A: null, D: null}\nrun: x", SecretRefs: refs}, {Task: "run: x", SecretRefs: map[string]string{"1=": "secret://a"}}} {
		if spec, err := a.ParseManaged(t.Context(), b); err != nil || spec.Error == nil || spec.Error.Kind != api.ErrInvalid || !strings.HasPrefix(spec.Error.Message, "secrets") {
			t.Errorf("%+v %v", spec.Error, err)
		}
	}
}
