// Package args merges the flags that k3s gives its components with those of the user (options *-arg).
package args

import (
	"maps"
	"slices"
	"strings"
)

// Merge returns flags sorted by name. User flags are "name=value" or "name"; a user's flag replaces the default of that
// name, "name+=value" adds after the default and "name-=value" before it (k3s pkg/daemons/config/types.go).
func Merge(defaults map[string]string, user []string) []string {
	values := map[string][]string{}
	for name, value := range defaults {
		values[name] = []string{value}
	}
	replaced := map[string]bool{}
	for _, flag := range user {
		name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		switch {
		case strings.HasSuffix(name, "+"):
			name = strings.TrimSuffix(name, "+")
			values[name] = append(values[name], value)
		case strings.HasSuffix(name, "-"):
			name = strings.TrimSuffix(name, "-")
			values[name] = append([]string{value}, values[name]...)
		default:
			if !replaced[name] {
				values[name] = nil
				replaced[name] = true
			}
			values[name] = append(values[name], value)
		}
	}
	var flags []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		for _, value := range values[name] {
			flags = append(flags, "--"+name+"="+value)
		}
	}
	return flags
}
