package app

import (
	"runtime/debug"
)

// version is what a release is called: go build -ldflags "-X github.com/authsvc/authsvc/internal/app.version=v1.2.3".
// Nothing else sets it.
var version string

// Version names the release that this is: by what the linker was told, else by what Go knows of the module and its commit.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	said := map[string]string{}
	for _, s := range info.Settings {
		said[s.Key] = s.Value
	}
	out := "devel"
	if commit := said["vcs.revision"]; commit != "" {
		out += "-" + commit[:min(12, len(commit))]
	}
	if said["vcs.modified"] == "true" {
		out += "-changed"
	}
	return out
}
