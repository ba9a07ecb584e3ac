package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// ProjectFile is the configuration of a project, in the folder where a command is started.
const ProjectFile = ".sky.yaml"

// LoadServer reads the server's own layer: config.yaml in SKY_HOME, else ~/.sky/config.yaml. An absent file is an empty
// configuration.
func LoadServer(e Env) (*Config, error) {
	c, err := e.user()
	if err != nil {
		return nil, err
	}
	if _, ok := c.tree["db"]; ok && len(c.tree) > 1 && !onlyOwn(c.tree) {
		return nil, fmt.Errorf("%s: db is set, so all other settings live in that database; remove them from the file", strings.Join(c.sources, ", "))
	}
	return c, nil
}

// onlyOwn tells whether what stands beside db is what a server needs before it can open the database.
func onlyOwn(tree map[string]any) bool {
	for k := range tree {
		switch k {
		case "db", "temporal", "server", "local", "memory_provider", "health":
		default:
			return false
		}
	}
	return true
}

// LoadClient reads the layers of a command: flags (values of --config) over project file over user file.
func LoadClient(e Env, flags []string) (*Config, error) {
	c, err := e.user()
	if err != nil {
		return nil, err
	}
	project, err := e.project()
	if err != nil {
		return nil, err
	}
	cli, err := e.Flags(flags)
	if err != nil {
		return nil, err
	}
	return c.Merge(project).Merge(cli), nil
}

// UserFile is the file that the user's layer is read from, and whether it exists. When none exists it is where one would
// be made.
func (e Env) UserFile() (path string, exists bool) {
	own := filepath.Join(e.Home, FileName)
	if e.exists(own) {
		return own, true
	}
	if e.UserHome != "" {
		if old := filepath.Join(e.UserHome, ".sky", FileName); e.exists(old) {
			return old, true
		}
	}
	return own, false
}

func (e Env) exists(path string) bool {
	_, err := e.ReadFile(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

func (e Env) user() (*Config, error) {
	if path, name, ok := e.variable("SKYPILOT_GLOBAL_CONFIG", "SKYPILOT_CONFIG"); ok {
		return e.named(path, name)
	}
	path, exists := e.UserFile()
	if !exists {
		return &Config{}, nil
	}
	return e.file(path)
}

func (e Env) project() (*Config, error) {
	if path, name, ok := e.variable("SKYPILOT_PROJECT_CONFIG"); ok {
		return e.named(path, name)
	}
	path := filepath.Join(e.Dir, ProjectFile)
	if !e.exists(path) {
		return &Config{}, nil
	}
	return e.file(path)
}

// variable is the first of some environment variables that is set to something.
func (e Env) variable(names ...string) (path, name string, ok bool) {
	for _, n := range names {
		if v, set := e.Lookup(n); set && v != "" {
			return e.abs(v), n, true
		}
	}
	return "", "", false
}

func (e Env) abs(path string) string {
	if path == "~" || strings.HasPrefix(path, "~/") && e.UserHome != "" {
		path = filepath.Join(e.UserHome, path[1:])
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(e.Dir, path)
	}
	return path
}

func (e Env) named(path, variable string) (*Config, error) {
	c, err := e.file(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s names the file %s, which does not exist; correct it or unset it", variable, path)
	}
	return c, err
}

func (e Env) file(path string) (*Config, error) {
	data, err := e.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration can't be read: %w", err)
	}
	return Parse(path, data)
}

// Parse reads and checks one file. name is for messages. The error is a yamldoc.ErrorList.
func Parse(name string, data []byte) (*Config, error) {
	docs, err := yamldoc.Load(name, data)
	if err != nil {
		return nil, err
	}
	switch {
	case len(docs) == 0:
		return &Config{sources: []string{name}}, nil
	case len(docs) > 1:
		return nil, yamldoc.ErrorList{{File: name, Line: docs[1].Line, Msg: "a configuration is one document; remove the --- lines"}}
	case docs[0].Kind != yaml.MappingNode:
		return nil, yamldoc.ErrorList{{File: name, Line: docs[0].Line, Column: docs[0].Column, Msg: "a configuration is an object (key: value)"}}
	}
	if err := check(name, docs[0]); err != nil {
		return nil, err
	}
	return &Config{tree: yamldoc.Plain(docs[0]).(map[string]any), sources: []string{name}}, nil
}

var assignment = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_*-][A-Za-z0-9_.@:/-]*?)*)=`)

// Flags reads the values of --config: one file, or any number of dotted.key=value, whose values are typed as YAML.
func (e Env) Flags(flags []string) (*Config, error) {
	out := &Config{}
	files := 0
	for _, f := range flags {
		m := assignment.FindStringSubmatch(f)
		if m == nil || e.exists(e.abs(f)) && files == 0 && len(flags) == 1 {
			files++
			continue
		}
		one, err := parseAssignment(f, m[1], f[len(m[0]):])
		if err != nil {
			return nil, err
		}
		out = out.Merge(one)
	}
	switch {
	case files == 0:
		return out, nil
	case files < len(flags):
		return nil, errors.New("--config: a file and key=value settings can't be combined")
	case files > 1:
		return nil, errors.New("--config: only one file can be given")
	}
	c, err := e.file(e.abs(flags[0]))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--config %s: neither a file that exists nor a setting like api_server.endpoint=URL", flags[0])
	}
	return c, err
}

func parseAssignment(flag, path, text string) (*Config, error) {
	value, err := yamldoc.Load("--config "+path, []byte(text))
	if err != nil {
		var list yamldoc.ErrorList
		if errors.As(err, &list) {
			return nil, fmt.Errorf("--config %s: the value %s", flag, list[0].Msg)
		}
		return nil, err
	}
	node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	switch {
	case len(value) == 1:
		node = value[0]
	case len(value) > 1:
		return nil, fmt.Errorf("--config %s: the value holds several documents", flag)
	case text != "":
		node = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	}
	keys := strings.Split(path, ".")
	for i := len(keys) - 1; i >= 0; i-- {
		node = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: keys[i]}, node}}
	}
	if err := check("--config", node); err != nil {
		return nil, err
	}
	return &Config{tree: yamldoc.Plain(node).(map[string]any), sources: []string{"--config " + path}}, nil
}
