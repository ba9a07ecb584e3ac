package task

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	taskName    = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[._-]{1,2}[a-zA-Z0-9]+)*$`)
	clusterName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9]*(?:[._-]{1,2}[a-zA-Z0-9]+)*$`)
	safeName    = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[_-]+[a-zA-Z0-9]+)*$`)
)

// Longest names.
const (
	MaxClusterName = 63
	MaxTaskName    = 255
)

// ValidateName checks the name of a task or job.
func ValidateName(name string) error {
	if len(name) > MaxTaskName || !taskName.MatchString(name) {
		return fmt.Errorf("%s", badName(name))
	}
	return nil
}

// ValidateEnvName checks the name of an environment variable.
func ValidateEnvName(name string) error {
	if msg := checkEnv(name, ""); msg != "" {
		return fmt.Errorf("%s", msg)
	}
	return nil
}

func badName(name string) string {
	if len(name) > MaxTaskName {
		return fmt.Sprintf("the name %q has more than %d characters", clip(name), MaxTaskName)
	}
	return fmt.Sprintf("%q is not a valid name; use letters and digits, joined by single or double . _ or -", clip(name))
}

// ValidateClusterName checks a cluster's name: a letter first, then letters and digits joined by one or two of . _ and -,
// at most MaxClusterName characters. Such a name is safe as a file name and a host name.
func ValidateClusterName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the name of the cluster is empty")
	case strings.ContainsAny(name, `/\`):
		return fmt.Errorf("%q is not a cluster name: it looks like a path", clip(name))
	case len(name) > MaxClusterName:
		return fmt.Errorf("the cluster name %q has %d characters; at most %d are allowed", clip(name), len(name), MaxClusterName)
	case !clusterName.MatchString(name):
		return fmt.Errorf("%q is not a valid cluster name; start with a letter, then use letters and digits joined by . _ or -", clip(name))
	}
	return nil
}

// LooksLikeFile tells whether a value given as a name was probably meant as a task file.
func LooksLikeFile(name string) bool {
	l := strings.ToLower(name)
	return strings.ContainsAny(name, `/\`) || strings.HasSuffix(l, ".yaml") || strings.HasSuffix(l, ".yml")
}
