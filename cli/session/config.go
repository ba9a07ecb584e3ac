package session

import (
	"os"

	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/task"
)

// ConfigEnv is where this session's configuration comes from.
func (s *Session) ConfigEnv() (config.Env, error) {
	home, err := s.Home()
	if err != nil {
		return config.Env{}, err
	}
	return config.Env{Home: home, UserHome: s.UserHome, Dir: s.Dir, Lookup: s.LookupEnv, ReadFile: os.ReadFile}, nil
}

// LoadConfig merges the client's layers as they lie on disk.
func LoadConfig(s *Session, flags []string) (Config, error) {
	env, err := s.ConfigEnv()
	if err != nil {
		return nil, err
	}
	c, err := config.LoadClient(env, flags)
	if err != nil {
		return nil, err
	}
	if s.Workspace != "" {
		c = c.Merge(config.New(map[string]any{"active_workspace": s.Workspace}))
	}
	return c, nil
}

// RaiseFlags lets --config win over the task's own `config` section, which lies below the flags.
func (s *Session) RaiseFlags(t *task.Task) error {
	if len(t.Config.Overrides) == 0 || len(s.ConfigFlags) == 0 {
		return nil
	}
	env, err := s.ConfigEnv()
	if err != nil {
		return err
	}
	flags, err := env.Flags(s.ConfigFlags)
	if err != nil {
		return err
	}
	replace(t.Config.Overrides, flags.Tree())
	return nil
}

// replace puts the values of over in the places where base has one too.
func replace(base, over map[string]any) {
	for k, v := range over {
		old, ok := base[k]
		if !ok {
			continue
		}
		om, isMap := old.(map[string]any)
		vm, both := v.(map[string]any)
		if isMap && both {
			replace(om, vm)
		} else {
			base[k] = v
		}
	}
}
