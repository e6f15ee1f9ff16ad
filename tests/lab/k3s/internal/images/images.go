// Package images imports image archives from the airgap directory of a node.
package images

import (
	"compress/bzip2"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"slipway/tests/lab/k3s/internal/paths"
)

const (
	cacheName    = ".cache.json"
	watchEvery   = 2 * time.Second
	pinned       = "io.cri-containerd.pinned=pinned"
	importedName = "unpacking "
)

// CTR runs the ctr command with an input and returns what it printed.
type CTR func(ctx context.Context, input io.Reader, arguments ...string) (string, error)

// Importer imports what lies in a directory and what changes there later.
type Importer struct {
	directory string
	ctr       CTR
	seen      map[string]mark
}

// mark tells versions of an archive apart, as the documented cache does: by size and time of change.
type mark struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
}

// New makes an importer for a directory, which is made where it does not exist.
func New(directory string, ctr CTR) (*Importer, error) {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, err
	}
	return &Importer{directory: directory, ctr: ctr, seen: map[string]mark{}}, nil
}

// Start imports all archives once; with a .cache.json in the directory only those that are new or changed.
// Archives that cannot be imported are logged and passed over.
func (i *Importer) Start(ctx context.Context) error {
	cache, caching, err := i.readCache()
	if err != nil {
		return err
	}
	current, err := i.scan()
	if err != nil {
		return err
	}
	for name, found := range current {
		i.seen[name] = found
		if cached, known := cache[name]; caching && known && cached.same(found) {
			continue
		}
		i.importLogged(ctx, name)
	}
	return i.writeCache(caching)
}

// Watch imports archives that appear or change, until the context ends.
func (i *Importer) Watch(ctx context.Context) {
	pending := map[string]mark{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
		current, err := i.scan()
		if err != nil {
			logrus.Errorf("Failed to watch images: %v", err)
			continue
		}
		changed := false
		for name, found := range current {
			if known, exists := i.seen[name]; exists && known.same(found) {
				continue
			}
			// An archive that is still being written changes between two looks.
			if last, exists := pending[name]; !exists || !last.same(found) {
				pending[name] = found
				continue
			}
			delete(pending, name)
			i.seen[name], changed = found, true
			i.importLogged(ctx, name)
		}
		if changed {
			if err := i.writeCache(i.cacheExists()); err != nil {
				logrus.Errorf("Failed to write %s: %v", cacheName, err)
			}
		}
	}
}

func (m mark) same(other mark) bool { return m.Size == other.Size && m.ModTime.Equal(other.ModTime) }

func (i *Importer) scan() (map[string]mark, error) {
	entries, err := os.ReadDir(i.directory)
	if err != nil {
		return nil, err
	}
	current := map[string]mark{}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		info, err := os.Stat(filepath.Join(i.directory, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
			continue
		}
		if err != nil {
			return nil, err
		}
		current[entry.Name()] = mark{info.Size(), info.ModTime()}
	}
	return current, nil
}

func (i *Importer) importLogged(ctx context.Context, name string) {
	file := filepath.Join(i.directory, name)
	started := time.Now()
	logrus.Infof("Importing images from %s", file)
	references, err := i.importFile(ctx, file)
	if err != nil {
		logrus.Errorf("Failed to process %s: %v", file, err)
		return
	}
	logrus.Infof("Imported %d images from %s in %s", len(references), file, time.Since(started).Round(time.Millisecond))
}

// importFile imports one archive and pins its images against garbage collection.
func (i *Importer) importFile(ctx context.Context, name string) ([]string, error) {
	if strings.HasSuffix(name, ".txt") {
		return i.pull(ctx, name)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var input io.Reader = file
	switch kind := kindOf(name); kind {
	case "tar": // ctr itself recognises gzip and zstd
	case "bz2":
		input = bzip2.NewReader(file)
	default:
		return nil, fmt.Errorf("unhandled file type %s", kind)
	}
	output, err := i.ctr(ctx, input, "images", "import", "-")
	if err != nil {
		return nil, err
	}
	references := parseImported(output)
	if len(references) == 0 {
		return nil, errors.New("no image with a name in the archive")
	}
	for _, reference := range references {
		logrus.Infof("Imported %s", reference)
		if _, err := i.ctr(ctx, nil, "images", "label", reference, pinned); err != nil {
			return nil, err
		}
	}
	return references, nil
}

// pull pulls the images that a list names, one a line.
func (i *Importer) pull(ctx context.Context, name string) ([]string, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	references := strings.Fields(string(content))
	for _, reference := range references {
		if _, err := i.ctr(ctx, nil, "images", "pull", reference); err != nil {
			return nil, err
		}
	}
	return references, nil
}

// kindOf returns how an archive has to be read: "tar", "bz2", or the suffix of an unknown kind.
func kindOf(name string) string {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"} {
		if strings.HasSuffix(name, suffix) {
			return "tar"
		}
	}
	for _, suffix := range []string{".tar.bz2", ".tbz"} {
		if strings.HasSuffix(name, suffix) {
			return "bz2"
		}
	}
	return filepath.Ext(name)
}

// parseImported finds the references in the lines "unpacking <reference> (<digest>)...done" of ctr.
func parseImported(output string) []string {
	var references []string
	for line := range strings.Lines(output) {
		if rest, found := strings.CutPrefix(line, importedName); found {
			reference, _, _ := strings.Cut(rest, " ")
			references = append(references, reference)
		}
	}
	return references
}

func (i *Importer) cacheExists() bool {
	_, err := os.Stat(filepath.Join(i.directory, cacheName))
	return err == nil
}

// readCache reads the cache; an empty file turns caching on as well.
func (i *Importer) readCache() (cache map[string]mark, exists bool, err error) {
	content, err := os.ReadFile(filepath.Join(i.directory, cacheName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if err := json.Unmarshal(content, &cache); err != nil && len(content) > 0 {
		logrus.Warnf("Ignoring broken %s: %v", cacheName, err)
	}
	return cache, true, nil
}

func (i *Importer) writeCache(caching bool) error {
	if !caching {
		return nil
	}
	content, err := json.Marshal(i.seen)
	if err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(i.directory, cacheName), content, 0o644)
}
