// Package options reads the options of `k3s server` and `k3s agent` from the command line, the environment and the
// configuration files, with k3s' rules of precedence (k3s docs, installation/configuration).
package options

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Role is the sub-command that options belong to.
type Role string

// Roles.
const (
	Server Role = "server"
	Agent  Role = "agent"
)

// UsageError is a mistake in the use of flags: k3s prints it with its usage text and exits with 1.
type UsageError struct{ message string }

func (e UsageError) Error() string { return e.message }

// Values holds the options of one start.
type Values struct {
	role   Role
	values map[string][]string
	set    map[string]bool
}

// Parse reads the options of a role. Arguments follow the sub-command. Warnings are lines for the log.
// Errors: UsageError, unreadable or broken configuration files.
func Parse(role Role, arguments []string, getenv func(string) string) (values *Values, warnings []string, err error) {
	table := table(role)
	file, explicit := configFile(arguments, getenv)
	settings, err := readConfig(file, explicit)
	if err != nil {
		return nil, nil, err
	}
	v := &Values{role: role, values: map[string][]string{}, set: map[string]bool{}}
	for _, setting := range settings {
		if role == Server && !known(table, setting.key) {
			warnings = append(warnings, fmt.Sprintf("Unknown flag --%s found in config.yaml, skipping", setting.key))
			continue
		}
		for _, value := range setting.values {
			if err := v.add(table, setting.key, &value); err != nil {
				return nil, warnings, err
			}
		}
	}
	if err := v.readArguments(table, arguments); err != nil {
		return nil, warnings, err
	}
	for name, option := range table {
		if value := getenv(option.env); option.env != "" && value != "" && !v.set[name] {
			if err := v.add(table, name, &value); err != nil {
				return nil, warnings, err
			}
		}
	}
	return v, warnings, v.refuseMissing(table)
}

// table returns the options of a role by name.
func table(role Role) map[string]option {
	all := slices.Concat(common, serverOnly)
	if role == Agent {
		all = slices.Concat(common, agentOnly)
	}
	byName := make(map[string]option, len(all))
	for _, option := range all {
		byName[option.name] = option
	}
	return byName
}

func known(table map[string]option, key string) bool {
	_, found := find(table, key)
	return found
}

// find looks an option up by name or short name.
func find(table map[string]option, key string) (option, bool) {
	if option, found := table[key]; found {
		return option, true
	}
	for _, option := range table {
		if option.short != "" && option.short == key {
			return option, true
		}
	}
	return option{}, false
}

// readArguments adds the flags of the command line. A flag replaces what the files say, also the whole of a list.
func (v *Values) readArguments(table map[string]option, arguments []string) error {
	replaced := map[string]bool{}
	for i := 0; i < len(arguments); i++ {
		text := strings.TrimPrefix(strings.TrimPrefix(arguments[i], "-"), "-")
		if text == arguments[i] || text == "" {
			return UsageError{fmt.Sprintf("unexpected argument %q", arguments[i])}
		}
		name, value, hasValue := strings.Cut(text, "=")
		option, found := find(table, name)
		if !found {
			return UsageError{"flag provided but not defined: -" + name}
		}
		given := &value
		if !hasValue {
			given = nil
			if option.kind != Bool {
				if i++; i == len(arguments) {
					return UsageError{"flag needs an argument: -" + name}
				}
				given = &arguments[i]
			}
		}
		if !replaced[option.name] {
			delete(v.values, option.name)
			replaced[option.name] = true
		}
		if err := v.add(table, name, given); err != nil {
			return err
		}
	}
	return nil
}

// add checks and stores one value; nil stands for a flag without value.
func (v *Values) add(table map[string]option, key string, value *string) error {
	option, found := find(table, key)
	if !found {
		return UsageError{"flag provided but not defined: -" + key}
	}
	text := "true"
	if value != nil {
		text = *value
	}
	var err error
	switch option.kind {
	case Bool:
		_, err = strconv.ParseBool(text)
	case Int:
		_, err = strconv.Atoi(text)
	case Duration:
		_, err = time.ParseDuration(text)
	}
	if err != nil {
		return UsageError{fmt.Sprintf("invalid value %q for flag -%s: %v", text, option.name, err)}
	}
	v.set[option.name] = true
	if option.kind == List {
		v.values[option.name] = append(v.values[option.name], text)
	} else {
		v.values[option.name] = []string{text}
	}
	return nil
}

// refuseMissing refuses options that the stand-in cannot honour, instead of ignoring them.
func (v *Values) refuseMissing(table map[string]option) error {
	for name, option := range table {
		if option.support == missing && v.set[name] && !slices.Equal(v.values[name], []string{option.value}) {
			if option.kind == Bool && !v.Bool(name) {
				continue
			}
			return fmt.Errorf("option %q is not part of the stand-in yet", name)
		}
	}
	return nil
}

// IsSet tells whether an option was given at all.
func (v *Values) IsSet(name string) bool { return v.set[name] }

// String returns a text option or its default.
func (v *Values) String(name string) string {
	if values := v.values[name]; len(values) > 0 {
		return values[len(values)-1]
	}
	return v.mustFind(name).value
}

// Bool returns a truth option or its default.
func (v *Values) Bool(name string) bool {
	value, _ := strconv.ParseBool(v.String(name))
	return value
}

// Int returns a number option or its default.
func (v *Values) Int(name string) int {
	value, _ := strconv.Atoi(v.String(name))
	return value
}

// List returns the values of a list option.
func (v *Values) List(name string) []string { return slices.Clone(v.values[name]) }

// SplitList returns the values of a list option whose entries may themselves be lists divided by commas.
func (v *Values) SplitList(name string) []string {
	var all []string
	for _, entry := range v.values[name] {
		for part := range strings.SplitSeq(entry, ",") {
			if part = strings.TrimSpace(part); part != "" {
				all = append(all, part)
			}
		}
	}
	return all
}

// Arguments lists what was set as flags, secrets as ********, for the annotation k3s.io/node-args.
func (v *Values) Arguments() []string {
	names := make([]string, 0, len(v.values))
	for name := range v.values {
		names = append(names, name)
	}
	slices.Sort(names)
	arguments := []string{string(v.role)}
	for _, name := range names {
		for _, value := range v.values[name] {
			if secret(name) {
				value = "********"
			}
			arguments = append(arguments, "--"+name, value)
		}
	}
	return arguments
}

func secret(name string) bool {
	return strings.HasSuffix(name, "token") || strings.HasSuffix(name, "-key") || name == "datastore-endpoint" || name == "vpn-auth"
}

func (v *Values) mustFind(name string) option {
	option, found := table(v.role)[name]
	if !found {
		panic("option " + name + " is not declared for " + string(v.role))
	}
	return option
}

// Usage prints the options of a role.
func Usage(out io.Writer, role Role) {
	fmt.Fprintf(out, "NAME:\n   k3s %s - Run node %s\n\nUSAGE:\n   k3s %s [OPTIONS]\n\nOPTIONS:\n", role, role, role)
	byName := table(role)
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		option := byName[name]
		fmt.Fprintf(out, "   --%s", name)
		if option.short != "" {
			fmt.Fprintf(out, ", -%s", option.short)
		}
		if option.value != "" {
			fmt.Fprintf(out, " (default: %s)", option.value)
		}
		if option.env != "" {
			fmt.Fprintf(out, " [$%s]", option.env)
		}
		fmt.Fprintln(out)
	}
}

// Getenv is os.Getenv, as the argument that Parse wants.
var Getenv = os.Getenv
