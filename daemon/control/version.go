package control

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
)

// A Version says which build a program is.
type Version struct {
	Version  string `json:"version"`
	Revision String `json:"revision"` // of the source; null: built outside a repository
	Modified bool   `json:"modified"` // the source had changes that were not committed
	Go       string `json:"go"`
	Platform string `json:"platform"` // as in linux/amd64
}

// BuildVersion returns the version of the running program: linked, which the
// build sets by -ldflags, else the one that the Go command stamped, else
// "devel".
func BuildVersion(linked string) Version {
	v := Version{Version: linked, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "(devel)" {
			v.Version = cmp.Or(v.Version, info.Main.Version)
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = String(s.Value)
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	v.Version = cmp.Or(v.Version, "devel")
	return v
}

// String returns the version as one line for a person.
func (v Version) String() string {
	s := v.Version
	if v.Revision != "" {
		s += " " + string(v.Revision[:min(12, len(v.Revision))])
		if v.Modified {
			s += "+changes"
		}
	}
	return fmt.Sprintf("%s (%s, %s)", s, v.Go, v.Platform)
}
