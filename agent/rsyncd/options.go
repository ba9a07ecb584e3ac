package rsyncd

import (
	"strconv"
	"strings"
)

// options are what the client asks of this end.
type options struct {
	sender bool
	args   []string // the first is always "."

	recurse, dirs                             bool
	links, hardLinks                          bool
	copyLinks, copyDirLinks, keepDirLinks     bool
	copyUnsafe, safeLinks                     bool
	perms, executability, times, owner, group bool
	devices, specials                         bool
	omitDirTimes, omitLinkTimes               bool
	numericIDs                                bool
	checksum, ignoreTimes, sizeOnly, update   bool
	existing, ignoreExisting                  bool
	relative, noImplied, oneFS                bool
	inplace, partial, mkpath                  bool
	del, delExcluded, delAfter, ignoreErrors  bool
	force                                     bool
	maxDelete                                 int // -1: no limit
	removeSource                              bool
	dryRun, pruneEmpty, listOnly              bool
	compress                                  bool
	backup                                    bool
	backupSuffix                              string
	tempDir                                   string
	minSize, maxSize                          int64 // 0: no bound
	modifyWindow                              int64
	verbose                                   int
	itemize                                   bool
	secluded                                  bool // the arguments come on the stream
	info                                      string
	seed                                      int32
}

// switches are the short options without a value.
func (o *options) switches() map[byte]func() {
	on := func(p *bool) func() { return func() { *p = true } }
	none := func() {}
	return map[byte]func(){
		'v': func() { o.verbose++ }, 'q': none, 'W': none, 'S': none, 'y': none, 'h': none,
		'u': on(&o.update), 'n': on(&o.dryRun), 'l': on(&o.links), 'd': on(&o.dirs), 'K': on(&o.keepDirLinks), 'm': on(&o.pruneEmpty),
		'O': on(&o.omitDirTimes), 'J': on(&o.omitLinkTimes), 'L': on(&o.copyLinks), 'k': on(&o.copyDirLinks), 'H': on(&o.hardLinks),
		'o': on(&o.owner), 'g': on(&o.group), 'D': func() { o.devices, o.specials = true, true }, 't': on(&o.times), 'p': on(&o.perms),
		'E': on(&o.executability), 'r': on(&o.recurse), 'c': on(&o.checksum), 'I': on(&o.ignoreTimes), 'R': on(&o.relative), 'x': on(&o.oneFS),
		'z': on(&o.compress), 'b': on(&o.backup), 's': on(&o.secluded),
	}
}

// long are the long options without a value.
func (o *options) long() map[string]func() {
	on := func(p *bool) func() { return func() { *p = true } }
	off := func(p *bool) func() { return func() { *p = false } }
	none := func() {}
	return map[string]func(){
		"server": none, "sender": on(&o.sender), "recursive": on(&o.recurse), "dirs": on(&o.dirs), "no-r": off(&o.recurse),
		"delete": on(&o.del), "delete-before": on(&o.del), "delete-during": on(&o.del), "del": on(&o.del),
		"delete-delay":    func() { o.del, o.delAfter = true, true },
		"delete-after":    func() { o.del, o.delAfter = true, true },
		"delete-excluded": func() { o.del, o.delExcluded = true, true },
		"force":           on(&o.force), "ignore-errors": on(&o.ignoreErrors),
		"numeric-ids": on(&o.numericIDs), "size-only": on(&o.sizeOnly), "existing": on(&o.existing), "ignore-non-existing": on(&o.existing),
		"ignore-existing": on(&o.ignoreExisting), "inplace": on(&o.inplace), "partial": on(&o.partial), "mkpath": on(&o.mkpath),
		"no-implied-dirs": on(&o.noImplied), "remove-source-files": on(&o.removeSource), "remove-sent-files": on(&o.removeSource),
		"safe-links": on(&o.safeLinks), "copy-unsafe-links": on(&o.copyUnsafe), "list-only": on(&o.listOnly), "specials": on(&o.specials), "devices": on(&o.devices),
		"no-specials": off(&o.specials), "no-devices": off(&o.devices), "new-compress": on(&o.compress), "old-compress": on(&o.compress),
		"stats": none, "use-qsort": none, "super": none, "no-W": none, "no-whole-file": none, "whole-file": none, "msgs2stderr": none, "no-msgs2stderr": none,
		"fuzzy": none, "preallocate": none, "fsync": none, "open-noatime": none, "trust-sender": none, "old-args": none, "delay-updates": none, "sparse": none,
	}
}

// valued are the long options with a value.
func (o *options) valued() map[string]func(v string) {
	number := func(p *int64) func(string) {
		return func(v string) {
			n, err := size(v)
			if err != nil {
				fail(exitSyntax, "%q is no number", v)
			}
			*p = n
		}
	}
	none := func(string) {}
	return map[string]func(string){
		"log-format": func(v string) { o.itemize = strings.Contains(v, "%i") }, "out-format": func(v string) { o.itemize = strings.Contains(v, "%i") },
		"timeout": none, "contimeout": none, "bwlimit": none, "compress-level": none, "info": none, "debug": none, "skip-compress": none, "max-alloc": none,
		"block-size": none, "outbuf": none, "stderr": none,
		"compress-choice": func(v string) {
			if o.compress = v == "zlib" || v == "zlibx"; !o.compress && v != "none" {
				fail(exitSupport, "files cannot be compressed by %s here: use -z alone, or --compress-choice=zlib", v)
			}
		},
		"checksum-choice": func(v string) {
			if v != "md5" && v != "auto" {
				fail(exitSupport, "checksums by %s are not known here: use md5", v)
			}
		},
		"checksum-seed": func(v string) { n, _ := strconv.ParseInt(v, 10, 64); o.seed = int32(n) },
		"max-delete":    func(v string) { n, _ := strconv.Atoi(v); o.maxDelete = max(n, 0) },
		"suffix":        func(v string) { o.backupSuffix = v },
		"temp-dir":      func(v string) { o.tempDir = v },
		"min-size":      number(&o.minSize), "max-size": number(&o.maxSize), "modify-window": number(&o.modifyWindow),
	}
}

// size reads a number with a unit of 1024.
func size(v string) (int64, error) {
	shift := 0
	if i := strings.IndexAny(strings.ToLower(v), "kmgt"); i > 0 {
		shift = 10 * (1 + strings.IndexByte("kmgt", strings.ToLower(v)[i]))
		v = v[:i]
	}
	f, err := strconv.ParseFloat(strings.TrimRight(v, "bB"), 64)
	return int64(f * float64(int64(1)<<shift)), err
}

// parse reads the arguments behind the program's name. An option that is not known is refused: half an understanding
// would write or delete the wrong files.
func (o *options) parse(args []string) {
	o.maxDelete, o.backupSuffix = -1, "~"
	switches, long, valued := o.switches(), o.long(), o.valued()
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			o.args = append(o.args, args...)
			return
		case strings.HasPrefix(a, "--"):
			name, value, has := strings.Cut(a[2:], "=")
			if f := long[name]; f != nil && !has {
				f()
				continue
			}
			f := valued[name]
			if f == nil {
				o.refuse(a)
			}
			if !has {
				if len(args) == 0 {
					fail(exitSyntax, "%s needs a value", a)
				}
				value, args = args[0], args[1:]
			}
			f(value)
		case len(a) > 1 && a[0] == '-' && !o.hasPaths():
			o.bundle(a[1:], switches)
		default:
			o.args = append(o.args, a)
			if len(o.args) == 1 { // from here on paths, which may look like options
				o.args = append(o.args, args...)
				return
			}
		}
	}
}

func (o *options) hasPaths() bool { return len(o.args) > 0 }

func (o *options) bundle(s string, switches map[byte]func()) {
	for i := range len(s) {
		switch c := s[i]; {
		case c == 'e': // what the client can do, to the end
			o.info = strings.TrimPrefix(s[i+1:], ".")
			return
		case c == 'B' || c == 'T':
			if c == 'T' {
				o.tempDir = s[i+1:]
			}
			return
		case switches[c] != nil:
			switches[c]()
		default:
			o.refuse("-" + string(c))
		}
	}
}

func (o *options) refuse(opt string) {
	why := map[string]string{"-A": "access control lists", "-X": "extended attributes", "-U": "access times", "-N": "creation times", "--append": "appending",
		"-C": "CVS's rules", "--files-from": "lists of files", "--daemon": "modules of a daemon"}
	what := why[opt]
	if what == "" {
		what, _, _ = strings.Cut(opt, "=")
	}
	fail(exitSupport, "this node has no rsync of its own, and the one built into its agent does not do %s (%s); leave it out, or install rsync on the node", what, opt)
}
