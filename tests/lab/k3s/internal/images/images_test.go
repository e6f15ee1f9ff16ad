package images

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fake records what is imported; the content "broken" cannot be.
type fake struct{ imported, labelled []string }

func (f *fake) run(_ context.Context, input io.Reader, arguments ...string) (string, error) {
	if arguments[1] == "label" {
		f.labelled = append(f.labelled, arguments[2]+" "+arguments[3])
		return "", nil
	}
	content, _ := io.ReadAll(input)
	if string(content) == "broken" {
		return "", errors.New("unrecognized image format")
	}
	f.imported = append(f.imported, string(content))
	return "unpacking localhost/" + string(content) + " (sha256:abc)...done\n", nil
}

func put(t *testing.T, directory, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(directory, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, directory string) *fake {
	t.Helper()
	f := &fake{}
	importer, err := New(directory, f.run)
	if err != nil {
		t.Fatal(err)
	}
	if err := importer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(f.imported)
	return f
}

func TestImportPinsAndSkipsBadFiles(t *testing.T) {
	directory := t.TempDir()
	put(t, directory, "a.tar", "a")
	put(t, directory, "b.tar.gz", "b")
	put(t, directory, "bad.tar", "broken")
	put(t, directory, "readme.md", "text")
	f := start(t, directory)
	if !slices.Equal(f.imported, []string{"a", "b"}) {
		t.Error(f.imported)
	}
	if !slices.Contains(f.labelled, "localhost/a io.cri-containerd.pinned=pinned") {
		t.Error(f.labelled)
	}
	if again := start(t, directory); !slices.Equal(again.imported, []string{"a", "b"}) {
		t.Error("without a cache every start imports all again:", again.imported)
	}
}

func TestCacheMakesImportConditional(t *testing.T) {
	directory := t.TempDir()
	put(t, directory, "a.tar", "a")
	put(t, directory, "b.tar", "b")
	put(t, directory, cacheName, "")
	if f := start(t, directory); !slices.Equal(f.imported, []string{"a", "b"}) {
		t.Error(f.imported)
	}
	if f := start(t, directory); len(f.imported) > 0 {
		t.Error("nothing has changed:", f.imported)
	}
	touched := time.Now().Add(time.Minute)
	if err := os.Chtimes(filepath.Join(directory, "b.tar"), touched, touched); err != nil {
		t.Fatal(err)
	}
	if f := start(t, directory); !slices.Equal(f.imported, []string{"b"}) {
		t.Error("a touched archive is imported again:", f.imported)
	}
}

func TestFilesThatAppearAreImported(t *testing.T) {
	directory := t.TempDir()
	done := make(chan string, 1)
	f := &fake{}
	importer, err := New(directory, func(ctx context.Context, input io.Reader, arguments ...string) (string, error) {
		output, err := f.run(ctx, input, arguments...)
		if arguments[1] == "label" {
			done <- arguments[2]
		}
		return output, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := importer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	go importer.Watch(t.Context())
	put(t, directory, "late.tar", "late")
	select {
	case got := <-done:
		if got != "localhost/late" {
			t.Error(got)
		}
	case <-time.After(10 * watchEvery):
		t.Fatal("not imported")
	}
}

func TestKinds(t *testing.T) {
	for name, want := range map[string]string{
		"a.tar": "tar", "a.tgz": "tar", "a.tar.zst": "tar", "a.tbz": "bz2", "a.tar.bz2": "bz2", "a.tar.lz4": ".lz4", "a.json": ".json",
	} {
		if got := kindOf(name); got != want {
			t.Error(name, got)
		}
	}
}

func TestParseImported(t *testing.T) {
	output := strings.Join([]string{"unpacking localhost/a:1 (sha256:1)...done", "other", "unpacking localhost/b:2 (sha256:2)...done"}, "\n")
	if got := parseImported(output); !slices.Equal(got, []string{"localhost/a:1", "localhost/b:2"}) {
		t.Error(got)
	}
}
