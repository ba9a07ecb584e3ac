package ckpt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/skyloom/skyloom/internal/filesync"
)

// format is the first thing that a checkpoint's JSON says of itself.
const format = "skyloom-checkpoint-1"

// maxSaved bounds a checkpoint's JSON, in bytes.
const maxSaved = 1 << 30

// Saved is a checkpoint as its JSON has it: enough to get the files back by hand.
type Saved struct {
	Format  string    `json:"format"`
	Job     int64     `json:"job"`
	Task    int       `json:"task"`
	Attempt int       `json:"attempt"`
	SavedAt time.Time `json:"saved_at"`
	Why     string    `json:"why"`
	Path    string    `json:"path"` // of the folder, as the task names it
	Nodes   []Node    `json:"nodes"`
}

// Node is the folder of one node.
type Node struct {
	Rank     int    `json:"rank"`
	Manifest string `json:"manifest"` // the id of what follows
	Entries  []Item `json:"entries"`
}

// Item is a file, folder or link. Paths are relative to the folder.
type Item struct {
	Path string `json:"path,omitempty"`
	// RawPath, RawLink stand in the place of Path and Link, in base64, where these are no text.
	RawPath string `json:"path_base64,omitempty"`
	Blob    string `json:"blob,omitempty"` // of a file: the name below blobs/
	Size    *int64 `json:"size,omitempty"`
	Mode    string `json:"mode,omitempty"`     // octal
	ModTime string `json:"modified,omitempty"` // of a file
	Folder  bool   `json:"folder,omitempty"`
	Link    string `json:"link,omitempty"`
	RawLink string `json:"link_base64,omitempty"`
}

// encode writes the JSON, an entry to a line.
func (s *Saved) encode() ([]byte, error) {
	var out bytes.Buffer
	head := *s
	head.Nodes = nil
	b, err := json.Marshal(head)
	if err != nil {
		return nil, err
	}
	out.Write(bytes.TrimSuffix(b, []byte(`"nodes":null}`)))
	out.WriteString("\"nodes\":[")
	for i, n := range s.Nodes {
		if i > 0 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, "\n{\"rank\":%d,\"manifest\":%q,\"entries\":[", n.Rank, n.Manifest)
		for k := range n.Entries {
			if k > 0 {
				out.WriteByte(',')
			}
			e, err := json.Marshal(&n.Entries[k])
			if err != nil {
				return nil, err
			}
			out.WriteByte('\n')
			out.Write(e)
		}
		out.WriteString("\n]}")
	}
	out.WriteString("\n]}\n")
	return out.Bytes(), nil
}

func decode(data []byte) (*Saved, error) {
	var s Saved
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if s.Format != format {
		return nil, fmt.Errorf("it says %q of itself, not %q: a newer server wrote it, or another program", s.Format, format)
	}
	return &s, nil
}

// node turns a manifest into what is written of it.
func node(rank int, m *filesync.Manifest) Node {
	n := Node{Rank: rank, Manifest: m.ID(), Entries: make([]Item, len(m.Entries))}
	for i := range m.Entries {
		e, to := &m.Entries[i], &n.Entries[i]
		to.Path, to.RawPath = text(e.Path)
		switch e.Kind {
		case filesync.KindFile:
			to.Blob, to.Size, to.ModTime = e.Hash, &e.Size, time.Unix(0, e.ModTime).UTC().Format(time.RFC3339Nano)
		case filesync.KindDir:
			to.Folder = true
		case filesync.KindLink:
			to.Link, to.RawLink = text(e.Link)
			continue
		}
		to.Mode = fmt.Sprintf("%04o", e.Mode)
	}
	return n
}

func text(s string) (plain, raw string) {
	if utf8.ValidString(s) {
		return s, ""
	}
	return "", base64.StdEncoding.EncodeToString([]byte(s))
}

func plain(s, raw string) (string, error) {
	if raw == "" {
		return s, nil
	}
	b, err := base64.StdEncoding.DecodeString(raw)
	return string(b), err
}

// Tree turns it back into the manifest, and checks that it is the one that was saved. Damage is a filesync.ErrInvalid.
func (n *Node) Tree() (*filesync.Manifest, error) {
	m := &filesync.Manifest{Entries: make([]filesync.Entry, len(n.Entries))}
	for i := range n.Entries {
		from, e := &n.Entries[i], &m.Entries[i]
		var err error
		if e.Path, err = plain(from.Path, from.RawPath); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", filesync.ErrInvalid, i, err)
		}
		if from.Mode != "" {
			mode, err := strconv.ParseUint(from.Mode, 8, 32)
			if err != nil {
				return nil, fmt.Errorf("%w: entry %d: %w", filesync.ErrInvalid, i, err)
			}
			e.Mode = uint32(mode) & uint32(fs.ModePerm)
		}
		switch {
		case from.Folder:
			e.Kind = filesync.KindDir
		case from.Blob != "" && from.Size != nil:
			e.Kind, e.Hash, e.Size = filesync.KindFile, from.Blob, *from.Size
			t, err := time.Parse(time.RFC3339Nano, from.ModTime)
			if err != nil {
				return nil, fmt.Errorf("%w: entry %d: %w", filesync.ErrInvalid, i, err)
			}
			e.ModTime = t.UnixNano()
		default:
			e.Kind = filesync.KindLink
			if e.Link, err = plain(from.Link, from.RawLink); err != nil {
				return nil, fmt.Errorf("%w: entry %d: %w", filesync.ErrInvalid, i, err)
			}
		}
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if got := m.ID(); got != n.Manifest {
		return nil, fmt.Errorf("%w: it says manifest %.12s and holds %.12s", filesync.ErrInvalid, n.Manifest, got)
	}
	return m, nil
}
