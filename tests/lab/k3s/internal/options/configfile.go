package options

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2"
)

// setting is a key of the configuration files with its merged values.
type setting struct {
	key    string
	values []string
}

// configFile finds the configuration file; explicit tells that the user named it, so that it must exist.
func configFile(arguments []string, getenv func(string) string) (name string, explicit bool) {
	for i, argument := range arguments {
		for _, flag := range []string{"--config", "-c", "-config"} {
			if value, found := strings.CutPrefix(argument, flag+"="); found {
				return value, true
			}
			if argument == flag && i+1 < len(arguments) {
				return arguments[i+1], true
			}
		}
	}
	if value := getenv("K3S_CONFIG_FILE"); value != "" {
		return value, true
	}
	return common[0].value, false
}

// readConfig reads a configuration file and the files of its directory "<file>.d" in the order of their names.
// The last value of a key wins whole; "key+" adds to what came before it.
func readConfig(file string, explicit bool) ([]setting, error) {
	files := []string{file}
	if _, err := os.Stat(file); os.IsNotExist(err) && !explicit {
		files = nil
	} else if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(file + ".d")
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, entry := range entries {
		if extension := filepath.Ext(entry.Name()); !entry.IsDir() && (extension == ".yaml" || extension == ".yml") {
			files = append(files, filepath.Join(file+".d", entry.Name()))
		}
	}
	var settings []setting
	for _, name := range files {
		if settings, err = mergeFile(settings, name); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

// mergeFile merges one file into the settings.
func mergeFile(settings []setting, name string) ([]setting, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	// The parser of YAML 1.1 on purpose, as k3s: an unquoted 0644 is an octal number and arrives as 420.
	var document yaml.MapSlice
	if err := yaml.Unmarshal(content, &document); err != nil {
		return nil, fmt.Errorf("failed to parse %s: %w", name, err)
	}
	for _, item := range document {
		key, appends := strings.CutSuffix(fmt.Sprint(item.Key), "+")
		values := texts(item.Value)
		at := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
		switch {
		case at < 0:
			settings = append(settings, setting{key, values})
		case appends:
			settings[at].values = append(settings[at].values, values...)
		default:
			settings[at].values = values
		}
	}
	return settings, nil
}

// texts turns a YAML value into the texts of one or more flags.
func texts(value any) []string {
	switch typed := value.(type) {
	case nil:
		return []string{""}
	case []any:
		values := []string{}
		for _, element := range typed {
			values = append(values, texts(element)...)
		}
		return values
	default:
		return []string{fmt.Sprint(typed)}
	}
}
