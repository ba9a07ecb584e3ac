package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Edit changes settings in a configuration file and keeps its comments. set and unset go by dotted path. The file is
// made when it is absent, is readable by its owner only, and is replaced atomically: it is never half-written.
func Edit(path string, set map[string]string, unset []string) error {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the configuration can't be read: %w", err)
	}
	if _, err := Parse(path, data); err != nil {
		return fmt.Errorf("the configuration must be corrected first:\n%w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		doc = yaml.Node{Kind: yaml.DocumentNode, HeadComment: doc.HeadComment, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	root := doc.Content[0]
	for _, p := range unset {
		unsetNode(root, strings.Split(p, "."))
	}
	for _, p := range slices.Sorted(maps.Keys(set)) {
		setNode(root, strings.Split(p, "."), set[p])
	}
	var b bytes.Buffer
	if len(root.Content) > 0 {
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(&doc); err != nil {
			return err
		}
	}
	if _, err := Parse(path, b.Bytes()); err != nil {
		return err
	}
	return replaceFile(path, b.Bytes())
}

func find(m *yaml.Node, key string) int {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return i
		}
	}
	return -1
}

func setNode(m *yaml.Node, keys []string, value string) {
	i := find(m, keys[0])
	if len(keys) == 1 {
		n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}
		if i < 0 {
			m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: keys[0]}, n)
		} else {
			n.LineComment = m.Content[i+1].LineComment
			m.Content[i+1] = n
		}
		return
	}
	if i < 0 {
		m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: keys[0]}, &yaml.Node{Kind: yaml.MappingNode})
		i = len(m.Content) - 2
	}
	if m.Content[i+1].Kind != yaml.MappingNode {
		m.Content[i+1] = &yaml.Node{Kind: yaml.MappingNode}
	}
	setNode(m.Content[i+1], keys[1:], value)
}

// unsetNode removes a key, and the objects that are empty after that.
func unsetNode(m *yaml.Node, keys []string) {
	i := find(m, keys[0])
	if i < 0 {
		return
	}
	if child := m.Content[i+1]; len(keys) > 1 {
		if child.Kind != yaml.MappingNode {
			return
		}
		if unsetNode(child, keys[1:]); len(child.Content) > 0 {
			return
		}
	}
	m.Content = append(m.Content[:i], m.Content[i+2:]...)
}

func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("the folder of the configuration can't be made: %w", err)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a linked configuration stays a link
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*.yaml")
	if err != nil {
		return fmt.Errorf("the configuration can't be written: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("the configuration can't be written: %w", err)
	}
	return nil
}
