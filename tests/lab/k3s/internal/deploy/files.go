package deploy

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// tracker finds the manifests in a directory that are new or changed: by time of change first, then by content.
type tracker struct {
	directory string
	seen      map[string]version
}

type version struct {
	modified time.Time
	sum      [sha256.Size]byte
}

// changed is a manifest that has to be applied.
type changed struct {
	name    string
	content []byte
	version version
}

// scan lists what has to be applied, in the order of the names. Dotfiles are ignored, as are x.yaml beside x.yaml.skip.
func (t *tracker) scan() ([]changed, error) {
	var found []changed
	err := filepath.WalkDir(t.directory, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(entry.Name(), ".") && name != t.directory {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.IsDir() || !isManifest(name) {
			return nil
		}
		if _, err := os.Stat(name + ".skip"); err == nil {
			return nil
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		last, known := t.seen[name]
		if known && last.modified.Equal(info.ModTime()) {
			return nil
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		current := version{info.ModTime(), sha256.Sum256(content)}
		if known && last.sum == current.sum {
			t.seen[name] = current
			return nil
		}
		found = append(found, changed{name, content, current})
		return nil
	})
	return found, err
}

// applied remembers that a manifest was applied.
func (t *tracker) applied(c changed) { t.seen[c.name] = c.version }

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
