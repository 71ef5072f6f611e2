// Package version says which Yumen this is.
package version

import "runtime/debug"

// Version is set by the linker from the file VERSION.
var Version = "dev"

// String returns the version with the commit, when the build recorded one.
func String() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return Version
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return Version + " (" + s.Value[:12] + ")"
		}
	}
	return Version
}
