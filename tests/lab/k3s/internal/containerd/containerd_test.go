package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRegistries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registries.yaml")
	if err := checkRegistries(file); err != nil {
		t.Error("the file may be missing:", err)
	}
	for content, good := range map[string]bool{
		"":                            true,
		"mirrors: {}\n":               true,
		"mirrors: [":                  false,
		"mirrors: {docker.io: {}}\n":  false,
		"configs: {\"a:5000\": {}}\n": false,
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkRegistries(file); (err == nil) != good {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestRuntimesAreFoundByTheirPrograms(t *testing.T) {
	directory := t.TempDir()
	program := filepath.Join(directory, "nvidia-container-runtime")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", directory)
	if found := findRuntimes(); found["nvidia"] != program || found["nvidia-cdi"] != "" {
		t.Error(found)
	}
}
