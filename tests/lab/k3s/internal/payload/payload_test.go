package payload

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"slipway/tests/lab/k3s/internal/paths"
)

// with makes a payload whose only tool has the given content.
func with(t *testing.T, content string) Payload {
	t.Helper()
	var buffer bytes.Buffer
	archive := tar.NewWriter(&buffer)
	if err := archive.WriteHeader(&tar.Header{Name: "runc", Size: int64(len(content)), Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return Payload{fstest.MapFS{"payload/tools.tar": {Data: buffer.Bytes()}}}
}

func TestUnpackMovesCurrentAndKeepsTheOld(t *testing.T) {
	data := paths.Data(t.TempDir())
	current := func() string {
		t.Helper()
		target, err := os.Readlink(data.Path("data", "current"))
		if err != nil || len(target) != 64 {
			t.Fatal(target, err)
		}
		return target
	}
	for range 2 {
		if err := with(t, "one").Unpack(data); err != nil {
			t.Fatal(err)
		}
	}
	old := current()
	info, err := os.Stat(filepath.Join(data.Bin(), "runc"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Error(info, err)
	}
	if err := with(t, "two").Unpack(data); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(data.Bin(), "runc")); err != nil || string(content) != "two" {
		t.Error(string(content), err)
	}
	if _, err := os.Stat(data.Path("data", old, "bin", "runc")); err != nil || current() == old {
		t.Error("a running shim still needs the old directory:", err)
	}
	left, err := filepath.Glob(data.Path("data", ".unpack-*"))
	if err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

func TestBinaryWithoutPayloadSaysSo(t *testing.T) {
	empty := Payload{fstest.MapFS{}}
	if err := empty.Unpack(paths.Data(t.TempDir())); err == nil {
		t.Error("nothing to unpack")
	}
	if _, err := empty.Images(); err == nil {
		t.Error("no images")
	}
	if _, err := empty.TraefikCRDs(); err == nil {
		t.Error("no kinds of Traefik")
	}
	incomplete := Payload{fstest.MapFS{"payload/images.json": {Data: []byte(`{"pause": "p"}`)}}}
	if _, err := incomplete.Images(); err == nil {
		t.Error("an incomplete list was accepted")
	}
}
