// Package payload unpacks the programs that ride in the binary and knows the images that belong to it.
package payload

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"slipway/tests/lab/k3s/internal/paths"
)

// Image names of the packaged components, keys of images.json.
const (
	Pause         = "pause"
	CoreDNS       = "coredns"
	LocalPath     = "local-path-provisioner"
	MetricsServer = "metrics-server"
	Busybox       = "busybox"
	Traefik       = "traefik"
)

// Links are the names by which the unpacked directory offers this program.
var Links = []string{"k3s", "kubectl"}

// Payload is the embedded directory.
type Payload struct{ Files fs.FS }

// Images returns the references of the packaged images.
func (p Payload) Images() (map[string]string, error) {
	content, err := fs.ReadFile(p.Files, "payload/images.json")
	if err != nil {
		return nil, errors.New("this binary was built without payload/images.json and cannot run nodes")
	}
	images := map[string]string{}
	if err := json.Unmarshal(content, &images); err != nil {
		return nil, fmt.Errorf("payload/images.json: %w", err)
	}
	for _, name := range []string{Pause, CoreDNS, LocalPath, MetricsServer, Busybox, Traefik} {
		if images[name] == "" {
			return nil, fmt.Errorf("payload/images.json lacks %q", name)
		}
	}
	return images, nil
}

// TraefikCRDs returns the kinds that Traefik defines, as YAML.
func (p Payload) TraefikCRDs() (string, error) {
	content, err := fs.ReadFile(p.Files, "payload/traefik-crds.yaml")
	if err != nil {
		return "", errors.New("this binary was built without payload/traefik-crds.yaml and cannot run servers")
	}
	return string(content), nil
}

// Unpack puts the tools into <data dir>/data/<sha>/bin, once for each content, and points the link "current" there.
func (p Payload) Unpack(data paths.Data) error {
	// Read as a stream: the archive is large and would stay in memory for long.
	sum := sha256.New()
	if err := p.readTools(func(archive io.Reader) error {
		_, err := io.Copy(sum, archive)
		return err
	}); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name := hex.EncodeToString(sum.Sum(nil))
	target := data.Path("data", name)
	if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
		if err := p.readTools(func(archive io.Reader) error { return unpack(archive, target) }); err != nil {
			return err
		}
	}
	for _, link := range Links {
		if err := replaceLink(self, filepath.Join(target, "bin", link)); err != nil {
			return err
		}
	}
	return replaceLink(name, data.Path("data", "current"))
}

// readTools opens the archive of the tools for a function.
func (p Payload) readTools(read func(io.Reader) error) error {
	file, err := p.Files.Open("payload/tools.tar")
	if err != nil {
		return errors.New("this binary was built without payload/tools.tar and cannot run nodes")
	}
	defer file.Close()
	return read(file)
}

// unpack writes the archive beside the target first: an interrupted start leaves no half directory under its name.
func unpack(content io.Reader, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(target), ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Mkdir(filepath.Join(temporary, "bin"), 0o755); err != nil {
		return err
	}
	archive := tar.NewReader(content)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		file, err := os.OpenFile(filepath.Join(temporary, "bin", filepath.Base(header.Name)), os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if _, err := io.Copy(file, archive); err != nil {
			file.Close()
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	return os.Rename(temporary, target)
}

// replaceLink makes a symbolic link, in place of an older one at the same name.
func replaceLink(target, name string) error {
	if current, err := os.Readlink(name); err == nil && current == target {
		return nil
	}
	temporary := name + ".new"
	os.Remove(temporary)
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}
