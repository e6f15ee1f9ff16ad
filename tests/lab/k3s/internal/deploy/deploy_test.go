package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slipway/tests/lab/k3s/internal/payload"
)

func variables() Variables {
	return Variables{
		ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local", LocalStoragePath: "/data/storage",
		Images: map[string]string{
			payload.CoreDNS: "localhost/coredns:1", payload.LocalPath: "localhost/lpp:1", payload.MetricsServer: "localhost/ms:1", payload.Busybox: "localhost/busybox:1",
			payload.Traefik: "localhost/traefik:1",
		},
		TraefikCRDs: "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: ingressroutes.traefik.io}",
	}
}

func TestPackagedManifestsAreValid(t *testing.T) {
	directory := t.TempDir()
	if _, err := WritePackaged(directory, variables(), nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"coredns.yaml", "local-storage.yaml", "metrics-server/metrics-server.yaml", "rolebindings.yaml", "runtimes.yaml", "traefik.yaml"} {
		content, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			t.Error(err)
			continue
		}
		objects, err := decode(content)
		if err != nil || len(objects) == 0 {
			t.Error(name, err)
		}
		for _, object := range objects {
			if object.GetName() == "" || object.GetKind() == "" || object.GetAPIVersion() == "" {
				t.Error(name, object)
			}
		}
	}
}

func TestDisableRemovesFiles(t *testing.T) {
	directory := t.TempDir()
	if _, err := WritePackaged(directory, variables(), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, "mine.yaml"), []byte("kind: ConfigMap\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	removed, err := WritePackaged(directory, variables(), []string{"metrics-server", "coredns", "traefik", "mine"})
	if err != nil || len(removed) != 4 {
		t.Fatal(len(removed), err)
	}
	for _, name := range []string{"metrics-server/metrics-server.yaml", "coredns.yaml", "traefik.yaml", "mine.yaml"} {
		if _, err := os.Stat(filepath.Join(directory, name)); !os.IsNotExist(err) {
			t.Error(name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(directory, "local-storage.yaml")); err != nil {
		t.Error(err)
	}
}

func TestTraefikIsAppliedAfterItsKindsAndRemovedWithThem(t *testing.T) {
	directory := t.TempDir()
	kinds := func(content []byte) []string {
		t.Helper()
		objects, err := decode(content)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, object := range objects {
			found = append(found, object.GetKind())
		}
		return found
	}
	if _, err := WritePackaged(directory, variables(), nil); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(filepath.Join(directory, "traefik.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := kinds(written)
	if found[0] != "CustomResourceDefinition" || !slices.Contains(found, "Deployment") {
		t.Error(found)
	}
	removed, err := WritePackaged(directory, variables(), []string{"traefik"})
	if err != nil || len(removed) != 1 || !slices.Equal(kinds(removed[0]), found) {
		t.Error(len(removed), err)
	}
}

func TestTracker(t *testing.T) {
	directory := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		file := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := &tracker{directory, map[string]version{}}
	scan := func() string {
		t.Helper()
		found, err := files.scan()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, manifest := range found {
			names = append(names, filepath.Base(manifest.name))
			files.applied(manifest)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	put("a.yaml", "1")
	put("sub/b.json", "1")
	put("c.yml", "1")
	put(".hidden.yaml", "1")
	put("d.txt", "1")
	put("e.yaml", "1")
	put("e.yaml.skip", "")
	if got := scan(); got != "a.yaml b.json c.yml" {
		t.Error(got)
	}
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(filepath.Join(directory, "a.yaml"), later, later); err != nil {
		t.Fatal(err)
	}
	if got := scan(); got != "" {
		t.Error("only touched:", got)
	}
	put("a.yaml", "2")
	if err := os.Chtimes(filepath.Join(directory, "a.yaml"), later.Add(time.Minute), later.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := scan(); got != "a.yaml" {
		t.Error("changed:", got)
	}
}

func TestDecode(t *testing.T) {
	objects, err := decode([]byte("# nothing\n---\nkind: A\napiVersion: v1\nmetadata: {name: a}\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: B, apiVersion: v1, metadata: {name: b}}\n"))
	if err != nil || len(objects) != 2 || objects[1].GetKind() != "B" {
		t.Error(objects, err)
	}
	if _, err := decode([]byte("kind: [\n")); err == nil {
		t.Error("broken YAML was accepted")
	}
}
