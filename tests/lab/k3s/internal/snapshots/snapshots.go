// Package snapshots keeps the snapshots of the datastore in a directory of a server: names, list, retention, schedule.
package snapshots

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/sirupsen/logrus"

	"slipway/tests/lab/k3s/internal/paths"
)

const (
	zipExtension  = ".zip"
	directoryMode = 0o700
	fileMode      = 0o600
)

// ErrBusy tells that another snapshot is being taken.
var ErrBusy = errors.New("snapshot save already in progress")

// Taker takes snapshots, one at a time.
type Taker struct {
	// Take writes a snapshot to a file.
	Take  func(ctx context.Context, file string) error
	mutex sync.Mutex
}

// Store is the snapshots of one server in one directory.
type Store struct {
	Directory string
	// Create tells to make the directory: the default one only, others must exist.
	Create bool
	Node   string
	Taker  *Taker
}

// File is one snapshot.
type File struct {
	Name     string    `json:"name"`
	Location string    `json:"location"` // URL
	Node     string    `json:"nodeName"`
	Size     int64     `json:"size"` // bytes
	Created  time.Time `json:"createdAt"`
}

// Save takes a snapshot <name>-<node>-<unix seconds>[.zip]. Errors: ErrBusy, a directory that does not exist.
func (s Store) Save(ctx context.Context, name string, compress bool, now time.Time) (File, error) {
	if !s.Taker.mutex.TryLock() {
		return File{}, ErrBusy
	}
	defer s.Taker.mutex.Unlock()
	if name == "" || strings.ContainsRune(name, filepath.Separator) {
		return File{}, fmt.Errorf("invalid snapshot name %q", name)
	}
	if err := s.prepare(); err != nil {
		return File{}, err
	}
	full := fmt.Sprintf("%s-%s-%d", name, s.Node, now.Unix())
	file := filepath.Join(s.Directory, full)
	logrus.Infof("Saving etcd snapshot to %s", file)
	if err := s.Taker.Take(ctx, file); err != nil {
		return File{}, fmt.Errorf("failed to take etcd snapshot: %w", err)
	}
	if compress {
		if err := zipFile(file); err != nil {
			return File{}, fmt.Errorf("failed to compress snapshot: %w", err)
		}
		full, file = full+zipExtension, file+zipExtension
	}
	if err := os.Chmod(file, fileMode); err != nil {
		return File{}, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return File{}, err
	}
	return s.describe(full, info), nil
}

func (s Store) prepare() error {
	if s.Create {
		return paths.MkdirAll(s.Directory, directoryMode)
	}
	info, err := os.Stat(s.Directory)
	if err != nil {
		return fmt.Errorf("failed to get etcd-snapshot-dir: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("failed to get etcd-snapshot-dir: %s is not a directory", s.Directory)
	}
	return nil
}

// describe tells of a snapshot; the time of its name counts, since copies change that of the file.
func (s Store) describe(name string, info fs.FileInfo) File {
	created := info.ModTime()
	base := strings.TrimSuffix(name, zipExtension)
	if seconds, err := strconv.ParseInt(base[strings.LastIndex(base, "-")+1:], 10, 64); err == nil {
		created = time.Unix(seconds, 0)
	}
	return File{Name: name, Location: "file://" + filepath.Join(s.Directory, name), Node: s.Node, Size: info.Size(), Created: created}
}

// List lists the snapshots, oldest first. A default directory that is not there yet has none.
func (s Store) List() ([]File, error) {
	entries, err := os.ReadDir(s.Directory)
	if errors.Is(err, fs.ErrNotExist) && s.Create {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("failed to get etcd-snapshot-dir: %w", err)
	}
	var files []File
	for _, entry := range entries {
		// A snapshot that is being written has the extension .part.
		if !entry.Type().IsRegular() || strings.HasSuffix(entry.Name(), ".part") {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		files = append(files, s.describe(entry.Name(), info))
	}
	slices.SortStableFunc(files, func(a, b File) int { return a.Created.Compare(b.Created) })
	return files, nil
}

// Delete deletes snapshots by name and returns what it deleted. Errors: no name, a name that is not there.
func (s Store) Delete(names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, errors.New("no snapshots given for removal")
	}
	var deleted []string
	for _, name := range names {
		if name != filepath.Base(name) {
			return deleted, fmt.Errorf("invalid snapshot name %q", name)
		}
		if err := os.Remove(filepath.Join(s.Directory, name)); err != nil {
			return deleted, fmt.Errorf("failed to delete snapshot %s: %w", name, err)
		}
		deleted = append(deleted, name)
	}
	return deleted, nil
}

// Prune deletes the oldest snapshots whose names begin with a prefix until the given number is left, and returns their
// names. Less than one keeps all.
func (s Store) Prune(prefix string, keep int) ([]string, error) {
	if keep < 1 {
		return nil, nil
	}
	logrus.Infof("Applying snapshot retention=%d to local snapshots with prefix %s in %s", keep, prefix, s.Directory)
	files, err := s.List()
	if err != nil {
		return nil, err
	}
	files = slices.DeleteFunc(files, func(file File) bool { return !strings.HasPrefix(file.Name, prefix) })
	if len(files) <= keep {
		return nil, nil
	}
	var names []string
	for _, file := range files[:len(files)-keep] {
		names = append(names, file.Name)
	}
	return s.Delete(names)
}

// Schedule calls a function at the times of a cron expression until the context ends. Errors: a bad expression.
func Schedule(ctx context.Context, expression string, run func()) error {
	schedule, err := cron.ParseStandard(expression)
	if err != nil {
		return fmt.Errorf("invalid etcd-snapshot-schedule-cron %q: %w", expression, err)
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(schedule.Next(time.Now()))):
				run()
			}
		}
	}()
	return nil
}

// zipFile replaces a file by an archive with the file in it.
func zipFile(name string) error {
	source, err := os.Open(name)
	if err != nil {
		return err
	}
	defer source.Close()
	// The plain snapshot goes in any case: nobody asked for it.
	defer os.Remove(name)
	target, err := os.OpenFile(name+zipExtension, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	archive := zip.NewWriter(target)
	entry, err := archive.Create(filepath.Base(name))
	if err == nil {
		_, err = io.Copy(entry, source)
	}
	if err := errors.Join(err, archive.Close(), target.Close()); err != nil {
		os.Remove(name + zipExtension)
		return err
	}
	return nil
}

// Plain copies a snapshot to a file, unpacked where it is an archive. Errors: an archive that holds no snapshot.
func Plain(name, target string) error {
	var source io.ReadCloser
	var err error
	if strings.HasSuffix(name, zipExtension) {
		archive, err := zip.OpenReader(name)
		if err != nil {
			return fmt.Errorf("failed to decompress snapshot %s: %w", name, err)
		}
		defer archive.Close()
		if len(archive.File) != 1 {
			return fmt.Errorf("failed to decompress snapshot %s: it holds %d files", name, len(archive.File))
		}
		if source, err = archive.File[0].Open(); err != nil {
			return err
		}
	} else if source, err = os.Open(name); err != nil {
		return err
	}
	defer source.Close()
	file, err := os.OpenFile(target, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, source)
	return errors.Join(err, file.Close())
}
