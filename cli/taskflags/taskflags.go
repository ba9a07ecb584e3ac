// Package taskflags holds the flags that describe a task, shared by all commands that take an entry point, and turns
// words and flags into a checked task. It must not know what becomes of the task.
package taskflags

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/task"
)

// Add adds the flags with the task's name, the accelerator flags and, if wanted, priority.
func Add(cmd *cobra.Command, o *task.Overrides, priority bool) {
	fs := cmd.Flags()
	fs.StringVarP(&o.Name, "name", "n", "", "the `NAME` of the task")
	fs.StringVar(&o.Workdir, "workdir", "", "the `DIR` that goes to ~/sky_workdir of every node")
	fs.StringVar(&o.GitURL, "git-url", "", "a git `URL` to use as workdir")
	fs.StringVar(&o.GitRef, "git-ref", "", "branch, tag or commit of the git workdir")
	fs.StringVar(&o.Infra, "infra", "", "where to run: `CLOUD[/REGION[/ZONE]]`, local, ssh/POOL, k8s/CONTEXT; * for any")
	for _, old := range []struct {
		p    *string
		name string
	}{{&o.Cloud, "cloud"}, {&o.Region, "region"}, {&o.Zone, "zone"}} {
		fs.StringVar(old.p, old.name, "", "deprecated, use --infra")
		fs.Lookup(old.name).Hidden = true
	}
	flags.Int(fs, &o.NumNodes, "num-nodes", "", 1, "the number `N` of nodes")
	fs.StringVar(&o.CPUs, "cpus", "", "vCPUs per node: `4`, 4+ for at least")
	fs.StringVar(&o.Memory, "memory", "", "memory per node in GB: `16`, 16+ for at least")
	fs.StringVar(&o.DiskSize, "disk-size", "", "size of the disk in `GB`")
	fs.StringVar(&o.DiskTier, "disk-tier", "", "`low|medium|high|ultra|best|none`")
	fs.StringVar(&o.NetworkTier, "network-tier", "", "`standard|best|none`")
	flags.Tri(fs, &o.UseSpot, "use-spot", "use spot nodes")
	fs.StringVar(&o.ImageID, "image-id", "", "image of the nodes: an `ID`, or docker:IMAGE")
	fs.StringVar(&o.LocalDisk, "local-disk", "", "a disk inside the machine: `[nvme|ssd:]GB[+]`")
	fs.StringVar(&o.GPUs, "gpus", "", "accelerators per node: `NAME[:COUNT]`")
	fs.StringVarP(&o.InstanceType, "instance-type", "t", "", "the infra's own `NAME` of the machine type")
	fs.StringArrayVar(&o.Ports, "ports", nil, "`PORT`s to open: 8080, 8000-8010, or a list with commas; repeatable")
	if priority {
		fs.StringVar(&o.Priority, "priority", "", "`-1000..1000`, or the name of a priority class")
	}
	fs.StringArrayVar(&o.Env, "env", nil, "`K=V`, or K to take it from your environment; repeatable")
	fs.StringVar(&o.EnvFile, "env-file", "", "a dotenv `FILE` of variables")
	fs.StringArrayVar(&o.Secret, "secret", nil, "like --env, but kept secret: `K=V` or K; repeatable")
	fs.StringVar(&o.SecretFile, "secret-file", "", "a dotenv `FILE` of secrets")
	flags.Tri(fs, &o.Mirror, "mirror", "delete in the nodes' workdir what the local one no longer has")
}

// Check judges the flags that can be judged without a task.
func Check(s *session.Session, o *task.Overrides) error {
	if o.Workdir != "" && o.GitURL != "" {
		return session.Usagef("--workdir and --git-url can't be combined")
	}
	if o.Infra != "" && (o.Cloud != "" || o.Region != "" || o.Zone != "") {
		return session.Usagef("--infra can't be combined with --cloud, --region or --zone")
	}
	on := FS(s)
	for _, f := range []struct{ flag, path string }{{"--env-file", o.EnvFile}, {"--secret-file", o.SecretFile}} {
		if f.path == "" {
			continue
		}
		abs, err := on.Abs(f.path)
		if err == nil {
			_, err = on.Stat(abs)
		}
		if err != nil {
			return session.Usagef("%s: the file %q does not exist or can't be read", f.flag, f.path)
		}
	}
	if o.Workdir != "" {
		abs, err := on.Abs(o.Workdir)
		if err != nil {
			return session.Usagef("--workdir: %v", err)
		}
		if st, err := on.Stat(abs); err != nil || !st.IsDir() {
			return session.Usagef("--workdir: %q is no folder", o.Workdir)
		}
	}
	if o.Cloud != "" || o.Region != "" || o.Zone != "" {
		s.IO.Warnf("--cloud, --region and --zone are deprecated; use --infra CLOUD/REGION/ZONE.")
	}
	return nil
}

// FS is the person's files as the session sees them.
func FS(s *session.Session) task.FS { return task.NewOSFS(s.Dir, s.UserHome) }

// Load turns words and flags into one checked task. verb is "launch" or "exec"; with yes nothing is asked.
func Load(s *session.Session, verb string, words []string, o *task.Overrides, yes bool) (*task.Task, error) {
	f, err := LoadFile(s, verb, words, o, yes)
	if err != nil {
		return nil, err
	}
	return f.Tasks[0], nil
}

// LoadFile turns words and flags into checked tasks: one, unless the verb takes pipelines and groups.
func LoadFile(s *session.Session, verb string, words []string, o *task.Overrides, yes bool) (*task.File, error) {
	if err := Check(s, o); err != nil {
		return nil, err
	}
	on := FS(s)
	entry, err := task.LoadEntrypoint(words, on)
	if err != nil {
		return nil, err
	}
	vars, err := o.Vars(on, s.LookupEnv)
	if err != nil {
		return nil, err
	}
	var f *task.File
	switch entry.Kind {
	case task.EntryRecipe:
		return nil, fmt.Errorf("recipes:%s: stored recipes come with a later release\nUse a task file or a command instead.", entry.Text)
	case task.EntryBrokenYAML:
		if yes {
			return nil, problem(entry.Problem)
		}
		s.IO.Warnf("%s", problem(entry.Problem))
		if ok, err := s.IO.Confirm(fmt.Sprintf("Run %q as a command?", entry.Text), false); err != nil || !ok {
			if err == nil || !s.IO.InTTY {
				err = &console.ErrAbort{}
			}
			return nil, err
		}
		fallthrough
	case task.EntryCommand:
		if strings.TrimSpace(entry.Text) != "" {
			s.IO.Notef("Command to run: %s", console.Cut(entry.Text, 400))
		}
		f, err = task.FromCommand(entry.Text, vars)
	case task.EntryYAML:
		s.IO.Notef("YAML to run: %s", entry.Path)
		f, err = task.Parse(entry.Path, entry.Data, task.ParseOptions{Vars: vars})
	}
	if err != nil {
		return nil, err
	}
	for _, w := range f.Warnings {
		s.IO.Warnf("%s", w)
	}
	if verb != task.VerbJobsLaunch && (f.Kind != task.Single || len(f.Tasks) != 1) {
		return nil, session.Usagef("%s holds several tasks; sky %s takes one. Pipelines and job groups are for sky jobs launch.", entry.Path, verb)
	}
	ignored, err := o.ApplyFile(f)
	if err != nil {
		return nil, err
	}
	if len(ignored) > 0 {
		s.IO.Warnf("Ignored, since %s holds several tasks: %s.", entry.Path, strings.Join(ignored, ", "))
	}
	for _, t := range f.Tasks {
		if verb == "exec" { // it syncs the workdir only
			t.FileMounts, t.Volumes = nil, nil
		}
		if err := t.CheckLocal(on); err != nil {
			return nil, err
		}
		if err := s.RaiseFlags(t); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func problem(err error) error {
	if err == nil {
		return errors.New("the file can't be read")
	}
	return err
}

// Supported checks a task against what the server does; without knowledge of that it leaves it to the server.
func Supported(s *session.Session, t *task.Task, verb string, features []string) error {
	return FileSupported(s, &task.File{Kind: task.Single, Tasks: []*task.Task{t}}, verb, features)
}

// FileSupported is Supported for all tasks of a file.
func FileSupported(s *session.Session, f *task.File, verb string, features []string) error {
	if len(features) == 0 {
		return nil
	}
	set := task.FeatureSet{}
	for _, f := range features {
		set[task.Feature(f)] = true
	}
	warnings, err := task.CheckFileSupported(f, verb, set)
	if verb == task.VerbExec { // the plan that a launch shows has them
		for _, w := range warnings {
			s.IO.Warnf("%s", w)
		}
	}
	return err
}

// Text is a task as it travels: YAML that names its secrets, and their values apart.
func Text(t *task.Task) (yaml string, secrets map[string]string, err error) {
	if secrets, err = extract(t); err != nil {
		return "", nil, err
	}
	return string(t.Render(task.SecretsReferenced)), secrets, nil
}

// FileText is Text for all tasks of a file. They share their secrets.
func FileText(f *task.File) (yaml string, secrets map[string]string, err error) {
	secrets = map[string]string{}
	for _, t := range f.Tasks {
		own, err := extract(t)
		if err != nil {
			return "", nil, err
		}
		for name, v := range own {
			if old, ok := secrets[name]; ok && old != v {
				return "", nil, fmt.Errorf("the tasks give secret %s different values\nGive each of them a name of its own.", name)
			}
			secrets[name] = v
		}
	}
	return string(f.Render(task.SecretsReferenced)), secrets, nil
}

func extract(t *task.Task) (map[string]string, error) {
	secrets := t.ExtractSecrets()
	if missing := t.UnresolvedSecrets(secrets); len(missing) > 0 {
		return nil, fmt.Errorf("secret%s without a value: %s\nGive it with --secret %s (taken from your environment), --secret %s=VALUE or --secret-file FILE.",
			map[bool]string{true: "s"}[len(missing) > 1], strings.Join(missing, ", "), missing[0], missing[0])
	}
	return secrets, nil
}
