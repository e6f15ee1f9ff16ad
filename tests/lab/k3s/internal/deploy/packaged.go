package deploy

import (
	"bytes"
	"embed"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"slipway/tests/lab/k3s/internal/paths"
)

//go:embed manifests
var manifests embed.FS

// Variables are what the manifests of the packaged components depend on.
type Variables struct {
	ClusterDNS       []string
	ClusterDomain    string
	LocalStoragePath string
	Images           map[string]string
	TraefikCRDs      string // objects of kind CustomResourceDefinition, as YAML
}

// WritePackaged writes the manifests of the packaged components below a directory, as at each start of k3s. It removes
// those of disabled components and returns their texts, so that the objects can be deleted.
func WritePackaged(directory string, variables Variables, disabled []string) (removed [][]byte, err error) {
	err = fs.WalkDir(manifests, "manifests", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative := strings.TrimPrefix(name, "manifests/")
		component, _, _ := strings.Cut(relative, "/")
		component = strings.TrimSuffix(component, path.Ext(component))
		content, err := render(name, variables)
		if err != nil {
			return err
		}
		target := filepath.Join(directory, relative)
		if slices.Contains(disabled, component) {
			removed = append(removed, content)
			if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		if existing, err := os.ReadFile(target); err == nil && bytes.Equal(existing, content) {
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		return paths.WriteFile(target, content, 0o600)
	})
	if err != nil {
		return nil, err
	}
	users, err := removeUserManifests(directory, disabled)
	return append(removed, users...), err
}

// removeUserManifests removes the manifests of users that option disable names, and returns their texts.
func removeUserManifests(directory string, disabled []string) (removed [][]byte, err error) {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		addon, _, _ := strings.Cut(entry.Name(), ".")
		name := filepath.Join(directory, entry.Name())
		if entry.IsDir() || !isManifest(name) || !slices.Contains(disabled, addon) {
			continue
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := os.Remove(name); err != nil {
			return nil, err
		}
		removed = append(removed, content)
	}
	return removed, nil
}

func render(name string, variables Variables) ([]byte, error) {
	content, err := manifests.ReadFile(name)
	if err != nil {
		return nil, err
	}
	parsed, err := template.New(name).Option("missingkey=error").Parse(string(content))
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, variables); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}
