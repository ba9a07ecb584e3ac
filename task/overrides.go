package task

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// Overrides are the flags that change a task, as typed; empty or nil means not given. The word "none" (any case; also
// "*" for a place) clears what the file says.
type Overrides struct {
	Name         string
	Workdir      string
	GitURL       string
	GitRef       string
	Mirror       *bool // ours
	Infra        string
	Cloud        string // deprecated
	Region       string // deprecated
	Zone         string // deprecated
	NumNodes     *int
	CPUs         string
	Memory       string
	DiskSize     string
	DiskTier     string
	NetworkTier  string
	UseSpot      *bool
	ImageID      string
	LocalDisk    string
	GPUs         string
	InstanceType string
	Ports        []string
	Priority     string
	JobRecovery  string
	Env          []string // K=V or K
	EnvFile      string   // path
	Secret       []string // K=V or K
	SecretFile   string   // path
}

// Vars reads the dotenv files and resolves bare names, and variables in the files, with lookup, which is the caller's
// environment.
func (o *Overrides) Vars(on FS, lookup func(string) (string, bool)) (Vars, error) {
	var v Vars
	var err error
	if v.EnvFile, err = readDotenv(on, "--env-file", o.EnvFile, lookup); err != nil {
		return Vars{}, err
	}
	if v.SecretFile, err = readDotenv(on, "--secret-file", o.SecretFile, lookup); err != nil {
		return Vars{}, err
	}
	if v.Envs, err = assignments("--env", o.Env, lookup); err != nil {
		return Vars{}, err
	}
	v.Secrets, err = assignments("--secret", o.Secret, lookup)
	return v, err
}

func readDotenv(on FS, flag, path string, lookup func(string) (string, bool)) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	abs, err := on.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	data, err := on.ReadFile(abs)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: the file %q does not exist", flag, path)
		}
		return nil, fmt.Errorf("%s: the file %q %s", flag, path, reason(err))
	}
	return ParseDotenv(path, data, lookup)
}

func assignments(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, a := range list {
		name, value, given := strings.Cut(a, "=")
		if msg := checkEnv(name, value); msg != "" {
			return nil, fmt.Errorf("%s: %s", flag, msg)
		}
		if !given {
			var ok bool
			if value, ok = lookup(name); !ok {
				return nil, fmt.Errorf("%s %s: %s is not set in your environment; set it, or write %s %s=VALUE", flag, name, name, flag, name)
			}
		}
		out[name] = value
	}
	return out, nil
}

func isReset(s string) bool { return strings.EqualFold(strings.TrimSpace(s), "none") }

// resourceFlags lists the flags, by name, that change resources or nodes; ApplyFile ignores them for several tasks.
func (o *Overrides) resourceFlags() []string {
	var out []string
	add := func(given bool, flag string) {
		if given {
			out = append(out, flag)
		}
	}
	add(o.Infra != "", "--infra")
	add(o.Cloud != "", "--cloud")
	add(o.Region != "", "--region")
	add(o.Zone != "", "--zone")
	add(o.NumNodes != nil, "--num-nodes")
	add(o.CPUs != "", "--cpus")
	add(o.Memory != "", "--memory")
	add(o.DiskSize != "", "--disk-size")
	add(o.DiskTier != "", "--disk-tier")
	add(o.NetworkTier != "", "--network-tier")
	add(o.UseSpot != nil, "--use-spot")
	add(o.ImageID != "", "--image-id")
	add(o.LocalDisk != "", "--local-disk")
	add(o.GPUs != "", "--gpus")
	add(o.InstanceType != "", "--instance-type")
	add(len(o.Ports) > 0, "--ports")
	add(o.Priority != "", "--priority")
	add(o.JobRecovery != "", "--job-recovery")
	return out
}

// ApplyFile applies the flags to all tasks of a file. For a pipeline or a job group only the workdir flags count; the
// names of the others that were given come back in ignored. The name goes to the file.
func (o *Overrides) ApplyFile(f *File) (ignored []string, err error) {
	if f.Kind != Single {
		only := Overrides{Workdir: o.Workdir, GitURL: o.GitURL, GitRef: o.GitRef, Mirror: o.Mirror}
		for _, t := range f.Tasks {
			if err := only.Apply(t); err != nil {
				return nil, err
			}
		}
		if o.Name != "" {
			if err := f.Rename(o.Name); err != nil {
				return nil, fmt.Errorf("--name: %w", err)
			}
		}
		return o.resourceFlags(), nil
	}
	if err := o.Apply(f.Tasks[0]); err != nil {
		return nil, err
	}
	if n := f.Tasks[0].Name; n != "" {
		f.Name = n
	}
	return nil, nil
}

// Apply changes t and validates the result. Environment variables are not its business: they go into Parse.
func (o *Overrides) Apply(t *Task) error {
	if err := o.applyTask(t); err != nil {
		return err
	}
	for _, step := range []struct {
		flag, value string
		do          func(string, *Task) error
	}{
		{"--infra", o.Infra, o.infra}, {"--cpus", o.CPUs, cpusFlag}, {"--memory", o.Memory, memoryFlag}, {"--disk-size", o.DiskSize, diskSizeFlag},
		{"--disk-tier", o.DiskTier, tierFlag(diskTiers, func(r *Resources) *string { return &r.DiskTier })},
		{"--network-tier", o.NetworkTier, tierFlag(networkTiers, func(r *Resources) *string { return &r.NetworkTier })},
		{"--image-id", o.ImageID, imageFlag}, {"--local-disk", o.LocalDisk, localDiskFlag}, {"--gpus", o.GPUs, gpusFlag},
		{"--instance-type", o.InstanceType, instanceTypeFlag}, {"--priority", o.Priority, priorityFlag}, {"--job-recovery", o.JobRecovery, recoveryFlag},
	} {
		if step.value == "" {
			continue
		}
		if err := step.do(step.value, t); err != nil {
			return fmt.Errorf("%s: %w", step.flag, err)
		}
	}
	if err := o.legacyPlace(t); err != nil {
		return err
	}
	if err := o.ports(t); err != nil {
		return fmt.Errorf("--ports: %w", err)
	}
	if o.UseSpot != nil {
		spot := *o.UseSpot
		t.Resources.override(func(r *Resources) { r.UseSpot = nil })
		t.Resources.UseSpot = &spot
	}
	return t.Validate()
}

func (o *Overrides) applyTask(t *Task) error {
	if o.Name != "" {
		if err := ValidateName(o.Name); err != nil {
			return fmt.Errorf("--name: %w", err)
		}
		t.Name = o.Name
	}
	switch {
	case o.Workdir != "" && o.GitURL != "":
		return errors.New("--workdir and --git-url can't be combined")
	case o.Workdir != "":
		t.Workdir = &Workdir{Path: o.Workdir, Mirror: t.Workdir != nil && t.Workdir.Mirror}
	case o.GitURL != "":
		if holdsSecret(o.GitURL) {
			return errors.New("--git-url: it holds a password or token; leave it out, and give it in the environment as GIT_TOKEN")
		}
		if !gitURL.MatchString(o.GitURL) {
			return fmt.Errorf("--git-url: %q is not a git url; write https://..., ssh://... or user@host:path", clip(o.GitURL))
		}
		t.Workdir = &Workdir{URL: o.GitURL}
	}
	if o.GitRef != "" {
		if !t.Workdir.IsGit() {
			return errors.New("--git-ref needs --git-url, or a git workdir in the file")
		}
		if strings.HasPrefix(o.GitRef, "-") {
			return fmt.Errorf("--git-ref: %q is not a branch, tag or commit", clip(o.GitRef))
		}
		t.Workdir.Ref = o.GitRef
	}
	if o.Mirror != nil {
		if t.Workdir == nil || t.Workdir.IsGit() {
			return errors.New("--mirror needs a local workdir")
		}
		t.Workdir.Mirror = *o.Mirror
	}
	if o.NumNodes != nil {
		if *o.NumNodes < 1 {
			return fmt.Errorf("--num-nodes: must be at least 1, not %d", *o.NumNodes)
		}
		t.NumNodes = *o.NumNodes
	}
	return nil
}

// override clears a field in all alternatives and outside, so that the new outer value holds everywhere.
func (r *Resources) override(clear func(*Resources)) {
	clear(r)
	for i := range r.AnyOf {
		clear(&r.AnyOf[i])
	}
	for i := range r.Ordered {
		clear(&r.Ordered[i])
	}
}

func (o *Overrides) infra(s string, t *Task) error {
	if o.Cloud != "" || o.Region != "" || o.Zone != "" {
		return errors.New("can't be combined with --cloud, --region or --zone")
	}
	var place Infra
	if !isReset(s) {
		var err error
		if place, err = ParseInfra(s); err != nil {
			return err
		}
		place = place.Concrete()
	}
	t.Resources.override(func(r *Resources) { r.Infra = Infra{} })
	t.Resources.Infra = place
	return nil
}

func (o *Overrides) legacyPlace(t *Task) error {
	if o.Cloud == "" && o.Region == "" && o.Zone == "" {
		return nil
	}
	change := func(i Infra) Infra {
		set := func(at *string, flag string) {
			switch {
			case flag == "":
			case isReset(flag) || flag == anyPart:
				*at = ""
			default:
				*at = flag
			}
		}
		i = i.Concrete()
		set(&i.Cloud, canonicalCloud(o.Cloud))
		set(&i.Region, o.Region)
		set(&i.Zone, o.Zone)
		return i
	}
	r := &t.Resources
	check := func(i Infra) (Infra, error) {
		i, err := ParseInfra(change(i).String())
		if err != nil {
			return i, fmt.Errorf("--cloud, --region, --zone: %w", err)
		}
		return i.Concrete(), nil
	}
	var err error
	if r.Infra, err = check(r.Infra); err != nil {
		return err
	}
	for _, list := range [][]Resources{r.AnyOf, r.Ordered} {
		for i := range list {
			if list[i].Infra.IsZero() {
				continue
			}
			if list[i].Infra, err = check(list[i].Infra); err != nil {
				return err
			}
		}
	}
	return nil
}

func cpusFlag(s string, t *Task) (err error) {
	var c CPUs
	if !isReset(s) {
		if c, err = ParseCPUs(s); err != nil {
			return err
		}
	}
	t.Resources.override(func(r *Resources) { r.CPUs = CPUs{} })
	t.Resources.CPUs = c
	return nil
}

func memoryFlag(s string, t *Task) (err error) {
	var m Memory
	if !isReset(s) {
		if m, err = ParseMemory(s); err != nil {
			return err
		}
	}
	t.Resources.override(func(r *Resources) { r.Memory = Memory{} })
	t.Resources.Memory = m
	return nil
}

func diskSizeFlag(s string, t *Task) (err error) {
	n := 0
	if !isReset(s) {
		if n, err = parseGB(s); err != nil {
			return err
		}
	}
	t.Resources.override(func(r *Resources) { r.DiskSizeGB = 0 })
	t.Resources.DiskSizeGB = n
	return nil
}

func tierFlag(words []string, at func(*Resources) *string) func(string, *Task) error {
	return func(s string, t *Task) error {
		s = strings.ToLower(s)
		if !isReset(s) && !contains(words, s) {
			return fmt.Errorf("must be one of %s, not %q%s", strings.Join(words, ", "), clip(s), DidYouMean(s, words))
		}
		if isReset(s) {
			s = ""
		}
		t.Resources.override(func(r *Resources) { *at(r) = "" })
		*at(&t.Resources) = s
		return nil
	}
}

func imageFlag(s string, t *Task) error {
	t.Resources.override(func(r *Resources) { r.Images = nil })
	if isReset(s) {
		return nil
	}
	if strings.ContainsAny(s, " \t\n") || s == "docker:" {
		return fmt.Errorf("%q is not an image", clip(s))
	}
	t.Resources.Images = map[string]string{"": s}
	return nil
}

func localDiskFlag(s string, t *Task) error {
	t.Resources.override(func(r *Resources) { r.LocalDisk = nil })
	if isReset(s) {
		return nil
	}
	d, err := ParseLocalDisk(s)
	if err != nil {
		return err
	}
	t.Resources.LocalDisk = &d
	return nil
}

// gpusFlag takes a single accelerator, or a list or map as in the file.
func gpusFlag(s string, t *Task) error {
	var r Resources
	if isReset(s) {
	} else if trimmed := strings.TrimSpace(s); strings.HasPrefix(trimmed, "[") || strings.HasPrefix(trimmed, "{") {
		docs, err := yamldoc.Load("", []byte(trimmed))
		if err != nil || len(docs) != 1 {
			return fmt.Errorf("%q is neither an accelerator nor a list or map of them", clip(s))
		}
		p := newParser("")
		readAccelerators(val{p, docs[0], ""}, &r)
		if len(p.errs) > 0 {
			return errors.New(p.errs[0].Msg)
		}
	} else {
		a, err := ParseAccelerator(s)
		if err != nil {
			return err
		}
		r.Accelerators.Options = []Accelerator{a}
	}
	t.Resources.override(func(r *Resources) { r.Accelerators = Accelerators{} })
	t.Resources.Accelerators = r.Accelerators
	return nil
}

func instanceTypeFlag(s string, t *Task) error {
	t.Resources.override(func(r *Resources) { r.InstanceType = "" })
	if !isReset(s) {
		t.Resources.InstanceType = s
	}
	return nil
}

func priorityFlag(s string, t *Task) error {
	t.Resources.override(func(r *Resources) { r.Priority, r.PriorityClass = nil, "" })
	if isReset(s) {
		return nil
	}
	n, err := strconv.Atoi(s)
	switch {
	case err != nil:
		t.Resources.PriorityClass = s
	case n < -1000 || n > 1000:
		return fmt.Errorf("must be from -1000 to 1000, not %d", n)
	default:
		t.Resources.Priority = &n
	}
	return nil
}

func recoveryFlag(s string, t *Task) error {
	p := newParser("")
	var j JobRecovery
	readStrategy(val{p, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}, ""}, &j)
	if len(p.errs) > 0 {
		return errors.New(p.errs[0].Msg)
	}
	if old := t.Recovery(); old != nil {
		k := *old
		k.Strategy = j.Strategy
		j = k
	}
	t.Resources.override(func(r *Resources) { r.JobRecovery = nil })
	t.Resources.JobRecovery = &j
	return nil
}

func (o *Overrides) ports(t *Task) error {
	if len(o.Ports) == 0 {
		return nil
	}
	var ports Ports
	for _, s := range o.Ports {
		if isReset(s) {
			if len(o.Ports) > 1 {
				return errors.New("none can't be combined with other ports")
			}
			break
		}
		p, err := ParsePorts(s)
		if err != nil {
			return err
		}
		ports = ports.Union(p)
	}
	t.Resources.override(func(r *Resources) { r.Ports = nil })
	t.Resources.Ports = ports
	return nil
}
