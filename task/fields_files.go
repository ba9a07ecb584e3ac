package task

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"
)

// Words of file_mounts and volumes.
var (
	storeNames   = []string{"s3", "gcs", "azure", "r2", "ibm", "oci", "nebius", "coreweave", "vastdata", "hf", "volume"}
	storageModes = []string{"MOUNT", "COPY", "MOUNT_CACHED"}
	storageTypes = []string{"MODEL_CHECKPOINT_RO", "MODEL_CHECKPOINT_RW", "DATASET_RO", "DATASET_RW"}
)

var (
	workdirObject       *object[Workdir]
	storageObject       *object[Storage]
	storageConfigObject *object[map[string]any]
	mountObject         *object[map[string]any]
	mountCachedObject   *object[map[string]any]
	volumeObject        *object[volumeForm]
)

type volumeForm struct {
	name, subPath, kind string
	size                int
	labels              map[string]string
	config              map[string]any
}

var bucketURL = regexp.MustCompile(`^(s3|gs|r2|cw|vastdata|nebius|cos|oci|hf)://`)

// IsBucketURL tells whether s is the address of a bucket or of an object in one.
func IsBucketURL(s string) bool {
	return bucketURL.MatchString(s) || strings.HasPrefix(s, "https://") && strings.Contains(s, ".blob.core.windows.net/")
}

// hasScheme tells whether s starts like a URL of any kind.
func hasScheme(s string) bool {
	return regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`).MatchString(s)
}

func buildFiles() {
	workdirObject = &object[Workdir]{
		title: "workdir", doc: "The folder that goes to `~/sky_workdir` of every node.",
		fields: []field[Workdir]{
			textField("path", "Local folder.", func(w *Workdir) *string { return &w.Path }).own(),
			textField("url", "Git repository: https, ssh:// or user@host:path.", func(w *Workdir) *string { return &w.URL }).needs(FeatureGitWorkdir),
			textField("ref", "Branch, tag or commit.", func(w *Workdir) *string { return &w.Ref }).needs(FeatureGitWorkdir).defaults("the default branch"),
			boolField("mirror", "Delete on the nodes what is gone locally.", func(w *Workdir) *bool { return &w.Mirror }).needs(FeatureMirror).own(),
		},
	}
	initStorage()
	volumeObject = &object[volumeForm]{
		title: "volumes.*", doc: "A volume by name, or one made with the cluster.",
		fields: []field[volumeForm]{
			textField("name", "Name of a volume made with `sky volumes apply`.", func(f *volumeForm) *string { return &f.name }),
			{
				name: "sub_path", forms: "relative path", doc: "Folder of the volume to mount.", schema: jsText(),
				read: func(v val, f *volumeForm) {
					s, ok := v.str()
					if ok && !validSubPath(s) {
						v.fail("must be a relative path of letters, digits and . _ - / without .., not %q", clip(s))
						return
					}
					f.subPath = s
				},
				write: func(f *volumeForm) any { return optional(f.subPath) },
			},
			{
				name: "size", forms: "`100Gi`, `100`", doc: "Size of a volume that is made and deleted with the cluster.", schema: jsOr(jsRange(1, maxInt), jsText()),
				read: readWith(func(f *volumeForm) *int { return &f.size }, parseGB),
				write: func(f *volumeForm) any {
					if f.size == 0 {
						return nil
					}
					return fmt.Sprintf("%dGi", f.size)
				},
			},
			wordField("type", "Kind of such a volume.", []string{"k8s-pvc"}, func(f *volumeForm) *string { return &f.kind }),
			textMapField("labels", "Labels of such a volume.", func(f *volumeForm) *map[string]string { return &f.labels }),
			{
				name: "config", forms: "object", doc: "Settings of such a volume, like storage_class_name and access_mode.", schema: jsMap(),
				read: func(v val, f *volumeForm) { f.config = v.plainMap() }, write: func(f *volumeForm) any { return plainMap(f.config) },
			},
		},
	}
}

func initStorage() {
	mountObject = &object[map[string]any]{
		title: "config.mount", doc: "Settings of mode MOUNT.",
		fields: []field[map[string]any]{
			anyField("read_only", "`true`, `false`", "Mount read-only.", jsBool(), val.boolean),
			anyField("hf_mount_args", "list of text", "Arguments of the Hugging Face mount.", jsTexts(), val.texts),
		},
	}
	size := func(v val) (string, bool) { return v.matching(`^(?i)\d+[bkmgtp]?$`, "a size like 32M") }
	span := func(v val) (string, bool) {
		return v.matching(`^(\d+(\.\d+)?(ms|s|m|h|d|w|M|y)?)+$|^off$`, "a duration like 1h30m")
	}
	whole := func(v val) (int, bool) { return v.integer(0, maxInt) }
	sizeJS := jsOr(jsRange(0, maxInt), jsPattern(`^\d+[bkmgtpBKMGTP]?$`))
	mountCachedObject = &object[map[string]any]{
		title: "config.mount_cached", doc: "Settings of mode MOUNT_CACHED.",
		fields: []field[map[string]any]{
			anyField("transfers", "whole number", "Uploads at the same time.", jsRange(1, maxInt), func(v val) (int, bool) { return v.integer(1, maxInt) }).defaults("4"),
			anyField("buffer_size", "`16M`", "Memory per open file.", sizeJS, size),
			anyField("vfs_cache_max_size", "`100G`", "Most that the cache may hold.", sizeJS, size),
			anyField("vfs_cache_max_age", "`1h`", "How long files stay in the cache.", jsText(), span),
			anyField("vfs_read_ahead", "`128M`", "Read ahead of the reader.", sizeJS, size),
			anyField("vfs_read_chunk_size", "`32M`", "Size of one read.", sizeJS, size),
			anyField("vfs_read_chunk_streams", "whole number", "Reads at the same time.", jsRange(0, maxInt), whole),
			anyField("vfs_write_back", "`1s`", "Delay before a closed file is uploaded.", jsText(), span).defaults("1s"),
			anyField("read_only", "`true`, `false`", "Mount read-only.", jsBool(), val.boolean),
		},
	}
	nested := func(o **object[map[string]any]) func(val) (map[string]any, bool) {
		return func(v val) (map[string]any, bool) {
			m := map[string]any{}
			(*o).read(v, &m)
			return m, true
		}
	}
	storageConfigObject = &object[map[string]any]{
		title: "file_mounts.*.config", doc: "Settings of a mounted bucket or disk.",
		fields: []field[map[string]any]{
			anyField("mount", "object", "Settings of mode MOUNT.", jsRef("config.mount"), nested(&mountObject)),
			anyField("mount_cached", "object", "Settings of mode MOUNT_CACHED.", jsRef("config.mount_cached"), nested(&mountCachedObject)),
			anyField("disk_size", "`256`", "With `store: volume`: size in GB.", jsOr(jsRange(1, maxInt), jsText()), func(v val) (int, bool) {
				s, ok := v.text()
				if !ok {
					return 0, false
				}
				n, err := parseGB(s)
				if err != nil {
					v.failErr(err)
				}
				return n, err == nil
			}),
			anyField("disk_tier", "word", "With `store: volume`: speed.", jsWords(diskTiers...), func(v val) (string, bool) { return v.oneOf(diskTiers...) }),
			anyField("storage_type", "word", "With `store: volume`: network or instance.", jsWords("network", "instance"), func(v val) (string, bool) { return v.oneOf("network", "instance") }),
			anyField("attach_mode", "word", "With `store: volume`: read_write or read_only.", jsWords("read_write", "read_only"), func(v val) (string, bool) { return v.oneOf("read_write", "read_only") }),
		},
	}
	storageObject = &object[Storage]{
		title: "file_mounts.*", doc: "A bucket to mount or copy.",
		fields: []field[Storage]{
			textField("name", "Name of the bucket; needed for a local source or an empty bucket.", func(s *Storage) *string { return &s.Name }),
			{
				name: "source", forms: "local folder, list of local paths, or bucket URL", def: "none: an empty bucket", doc: "What goes into the bucket, or which bucket it is.", schema: jsOr(jsText(), jsTexts()),
				read: func(v val, s *Storage) {
					if v.n.Kind == yaml.SequenceNode {
						s.SourceIsList = true
						s.Source, _ = v.texts()
						return
					}
					if t, ok := v.str(); ok {
						s.Source = []string{t}
					}
				},
				write: func(s *Storage) any {
					switch {
					case len(s.Source) == 0 && !s.SourceIsList:
						return nil
					case s.SourceIsList:
						return s.Source
					}
					return s.Source[0]
				},
			},
			wordField("store", "Kind of object store.", storeNames, func(s *Storage) *string { return &s.Store }).defaults("that of the task's infra"),
			boolPtrField("persistent", "Keep the bucket when the cluster or job ends.", func(s *Storage) **bool { return &s.Persistent }).defaults("true"),
			wordField("mode", "MOUNT streams, COPY downloads, MOUNT_CACHED caches on disk.", storageModes, func(s *Storage) *string { return &s.Mode }).defaults("MOUNT"),
			wordField("type", "Preset for MOUNT_CACHED.", storageTypes, func(s *Storage) *string { return &s.Type }),
			textField("mount_options", "Extra mount options.", func(s *Storage) *string { return &s.MountOptions }),
			{
				name: "config", forms: "object", doc: "Fine settings.", schema: jsRef("file_mounts.*.config"),
				read: func(v val, s *Storage) {
					m := map[string]any{}
					storageConfigObject.read(v, &m)
					if len(m) > 0 {
						s.Config = m
					}
				},
				write: func(s *Storage) any { return plainMap(s.Config) },
			},
		},
	}
	for i := range storageObject.fields {
		storageObject.fields[i].later = []Feature{FeatureStorage}
	}
}

// anyField keeps a checked value in a free map.
func anyField[V any](name, forms, doc string, schema js, read func(val) (V, bool)) field[map[string]any] {
	return field[map[string]any]{
		name: name, forms: forms, doc: doc, schema: schema,
		read: func(v val, m *map[string]any) {
			if x, ok := read(v); ok {
				(*m)[name] = x
			}
		},
	}
}

func (v val) texts() ([]string, bool) {
	var out []string
	n := len(v.p.errs)
	v.items(func(_ int, c val) {
		if s, ok := c.str(); ok {
			out = append(out, s)
		}
	})
	return out, len(v.p.errs) == n
}

func (v val) matching(pattern, what string) (string, bool) {
	s, ok := v.text()
	if ok && (len(s) > 40 || !regexp.MustCompile(pattern).MatchString(s)) {
		v.fail("must be %s, not %s", what, v.what())
		return "", false
	}
	return s, ok
}

var subPathChars = regexp.MustCompile(`^[a-zA-Z0-9._/-]+$`)

func validSubPath(s string) bool {
	if !subPathChars.MatchString(s) || strings.HasPrefix(s, "/") {
		return false
	}
	for _, part := range strings.Split(s, "/") {
		if part == ".." {
			return false
		}
	}
	return true
}

func readWorkdir(v val, t *Task) {
	t.Workdir = &Workdir{}
	if v.n.Kind != yaml.MappingNode {
		if s, ok := v.str(); ok {
			t.Workdir.Path = s
			checkWorkdir(v, t.Workdir)
		}
		return
	}
	workdirObject.read(v, t.Workdir)
	checkWorkdir(v, t.Workdir)
}

var gitURL = regexp.MustCompile(`^(https?://|ssh://|git://|file://)\S+$|^[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:\S+$`)

// holdsSecret says whether a git url carries a password, or a token in the place of the user.
func holdsSecret(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return false
	}
	_, password := u.User.Password()
	return password || regexp.MustCompile(`^(gh[a-z]_|github_pat_|glpat-|ATBB)`).MatchString(u.User.Username())
}

func checkWorkdir(v val, w *Workdir) {
	switch {
	case w.Path == "" && w.URL == "":
		v.fail("names neither a folder nor a git url")
	case w.Path != "" && w.URL != "":
		v.fail("path and url can't be combined")
	case w.Ref != "" && w.URL == "":
		v.fail("ref needs a git url")
	case w.Mirror && w.URL != "":
		v.fail("mirror is for local folders; a git workdir is always exact")
	case w.URL != "" && holdsSecret(w.URL):
		v.fail("the url holds a password or token; leave it out, and give it in the environment as GIT_TOKEN")
	case w.URL != "" && !gitURL.MatchString(w.URL):
		v.fail("%q is not a git url; write https://..., ssh://... or user@host:path", clip(w.URL))
	case strings.HasPrefix(w.Ref, "-"):
		v.fail("%q is not a branch, tag or commit", clip(w.Ref))
	case w.Path != "" && (hasScheme(w.Path) || IsBucketURL(w.Path)):
		v.fail("%q is not a local folder; a git repository is written workdir: {url: ...}", clip(w.Path))
	}
}

func writeWorkdir(t *Task) any {
	w := t.Workdir
	switch {
	case w == nil:
		return nil
	case w.URL == "" && !w.Mirror:
		return w.Path
	}
	return writeObject(workdirObject, w)
}

func readFileMounts(v val, t *Task) {
	v.each(func(dst string, kv, c val) {
		m := FileMount{Dst: dst}
		switch {
		case dst == "":
			kv.fail("a destination is empty")
		case strings.HasSuffix(dst, "/"):
			kv.fail("destination %q must not end with /", clip(dst))
		case IsBucketURL(dst) || hasScheme(dst):
			kv.fail("destination %q is a URL; write it the other way round: path on the node: %s", clip(dst), clip(dst))
		case c.isNull():
			kv.fail("destination %q has no source", clip(dst))
		case c.n.Kind == yaml.MappingNode:
			m.Storage = &Storage{}
			storageObject.read(c, m.Storage)
			checkStorage(c, m.Storage)
		default:
			s, ok := c.str()
			switch {
			case !ok:
				return
			case s == "":
				c.fail("the source is empty")
			case hasScheme(s) && !IsBucketURL(s):
				c.fail("%q is neither a local path nor a bucket; buckets start with s3://, gs://, r2://, https://<account>.blob.core.windows.net/ or the like", clip(s))
			}
			m.Src = s
		}
		t.FileMounts = append(t.FileMounts, m)
	})
	sort.SliceStable(t.FileMounts, func(i, j int) bool { return t.FileMounts[i].Dst < t.FileMounts[j].Dst })
	for i := 1; i < len(t.FileMounts); i++ {
		if t.FileMounts[i].Dst == t.FileMounts[i-1].Dst {
			v.fail("destination %q is given twice", clip(t.FileMounts[i].Dst))
		}
	}
}

func checkStorage(v val, s *Storage) {
	uri := len(s.Source) == 1 && (IsBucketURL(s.Source[0]) || hasScheme(s.Source[0]))
	mode := s.Mode
	if mode == "" {
		mode = "MOUNT"
	}
	switch {
	case uri && !IsBucketURL(s.Source[0]):
		v.fail("source %q is not a bucket that is known", clip(s.Source[0]))
	case uri && s.Name != "":
		v.fail("name can't be combined with a bucket URL as source; the URL names the bucket")
	case !uri && s.Name == "" && s.Store != "volume":
		v.fail("name is missing: a bucket made from local files, or an empty one, needs a name")
	case hasScheme(s.Name):
		v.fail("name %q must not start with a scheme; write source: %s", clip(s.Name), clip(s.Name))
	case s.SourceIsList && len(s.Source) == 0:
		v.fail("source is an empty list")
	case mode == "COPY" && len(s.Source) == 0:
		v.fail("mode COPY needs a source")
	case s.Type != "" && mode != "MOUNT_CACHED":
		v.fail("type needs mode: MOUNT_CACHED")
	case s.Config["mount"] != nil && mode != "MOUNT":
		v.fail("config.mount needs mode: MOUNT")
	case s.Config["mount_cached"] != nil && mode != "MOUNT_CACHED":
		v.fail("config.mount_cached needs mode: MOUNT_CACHED")
	}
	names := map[string]bool{}
	for _, src := range s.Source {
		if src == "" {
			v.fail("source is empty")
			return
		}
		if strings.HasSuffix(src, "/") && src != "/" {
			v.fail("source %q must not end with /", clip(src))
		}
		if s.SourceIsList && (IsBucketURL(src) || hasScheme(src)) {
			v.fail("a list of sources holds local paths only, not %q", clip(src))
		}
		if base := path.Base(src); names[base] {
			v.fail("two sources are named %q", clip(base))
		} else {
			names[base] = true
		}
	}
	if uri && mode != "COPY" && subPathOfBucket(s.Source[0]) {
		v.fail("mode %s of a part of a bucket is not possible; mount the bucket, or use mode: COPY", mode)
	}
}

// subPathOfBucket tells whether a URI names something inside a bucket, for stores that mount whole buckets only.
func subPathOfBucket(uri string) bool {
	scheme, rest, _ := strings.Cut(uri, "://")
	depth := strings.Count(strings.Trim(rest, "/"), "/")
	switch scheme {
	case "https", "hf":
		return false
	case "cos":
		return depth > 1
	}
	return depth > 0
}

func readVolumes(v val, t *Task) {
	v.each(func(dst string, kv, c val) {
		if !strings.HasPrefix(dst, "/") && dst != "~" && !strings.HasPrefix(dst, "~/") {
			kv.fail("mount path %q must start with / or ~", clip(dst))
			return
		}
		m := VolumeMount{Dst: dst}
		switch {
		case c.isNull():
			kv.fail("mount path %q has no volume", clip(dst))
			return
		case c.n.Kind != yaml.MappingNode:
			s, ok := c.str()
			if !ok {
				return
			}
			if s == "" {
				c.fail("the name of the volume is empty")
			}
			m.Name = s
		default:
			var f volumeForm
			volumeObject.read(c, &f)
			switch {
			case f.name != "" && (f.size != 0 || f.kind != "" || f.labels != nil || f.config != nil):
				c.fail("name can't be combined with size, type, labels or config: a volume is either an existing one, or made with the cluster")
			case f.name != "":
				m.Name, m.SubPath = f.name, f.subPath
			case f.size == 0:
				c.fail("needs name (an existing volume) or size (one made with the cluster)")
			case f.subPath != "":
				c.fail("sub_path needs the name of an existing volume")
			default:
				if f.kind == "" {
					f.kind = "k8s-pvc"
				}
				m.Ephemeral = &EphemeralVolume{SizeGB: f.size, Type: f.kind, Labels: f.labels, Config: f.config}
			}
		}
		t.Volumes = append(t.Volumes, m)
	})
	sort.SliceStable(t.Volumes, func(i, j int) bool { return t.Volumes[i].Dst < t.Volumes[j].Dst })
	for i := 1; i < len(t.Volumes); i++ {
		if t.Volumes[i].Dst == t.Volumes[i-1].Dst {
			v.fail("mount path %q is given twice", clip(t.Volumes[i].Dst))
		}
	}
}

func writeFileMounts(t *Task) any {
	var out omap
	for _, m := range t.FileMounts {
		if m.Storage != nil {
			out = append(out, entry{m.Dst, writeObject(storageObject, m.Storage)})
		} else {
			out = append(out, entry{m.Dst, m.Src})
		}
	}
	return out.orNil()
}

func writeVolumes(t *Task) any {
	var out omap
	for _, m := range t.Volumes {
		switch e := m.Ephemeral; {
		case e != nil:
			out = append(out, entry{m.Dst, writeObject(volumeObject, &volumeForm{size: e.SizeGB, kind: e.Type, labels: e.Labels, config: e.Config})})
		case m.SubPath != "":
			out = append(out, entry{m.Dst, writeObject(volumeObject, &volumeForm{name: m.Name, subPath: m.SubPath})})
		default:
			out = append(out, entry{m.Dst, m.Name})
		}
	}
	return out.orNil()
}

// jsonText checks that s is JSON.
func jsonText(s string) error {
	var x any
	if err := json.Unmarshal([]byte(s), &x); err != nil {
		return fmt.Errorf("is not valid JSON: %v", err)
	}
	return nil
}
