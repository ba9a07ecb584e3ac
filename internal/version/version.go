// Package version names the build. It owns two variables that the linker sets and knows nothing else.
package version

// Version and Commit are set at build time:
//
//	-ldflags "-X github.com/skyloom/skyloom/internal/version.Version=1.2.3 -X …/version.Commit=abc123"
var (
	Version = "0.1.0-dev"
	Commit  = "unknown"
)
