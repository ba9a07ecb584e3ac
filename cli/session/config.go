package session

func loadConfig(s *Session, flags []string) (Config, error) { return emptyConfig{}, nil }

type emptyConfig struct{}

func (emptyConfig) Get(string) (any, bool) { return nil, false }
func (emptyConfig) Tree() map[string]any   { return nil }
