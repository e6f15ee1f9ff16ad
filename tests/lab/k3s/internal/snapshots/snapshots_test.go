package snapshots

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Unix(1_700_000_000, 0)

// newStore is a store whose snapshots hold a text.
func newStore(t *testing.T) Store {
	t.Helper()
	take := func(_ context.Context, file string) error { return os.WriteFile(file, []byte("content"), 0o644) }
	return Store{Directory: filepath.Join(t.TempDir(), "snapshots"), Create: true, Node: "node-a", Taker: &Taker{Take: take}}
}

func save(t *testing.T, store Store, name string, compress bool, after time.Duration) File {
	t.Helper()
	file, err := store.Save(t.Context(), name, compress, start.Add(after))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func names(t *testing.T, store Store) []string {
	t.Helper()
	files, err := store.List()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, file := range files {
		all = append(all, file.Name)
	}
	return all
}

func TestNamesCarryNodeAndTime(t *testing.T) {
	store := newStore(t)
	file := save(t, store, "on-demand", false, 0)
	path := filepath.Join(store.Directory, "on-demand-node-a-1700000000")
	if file.Name != filepath.Base(path) || file.Location != "file://"+path || file.Size != 7 || !file.Created.Equal(start) || file.Node != "node-a" {
		t.Error(file)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if info, err := os.Stat(store.Directory); err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info.Mode(), err)
	}
}

func TestCompressedSnapshotsComeBack(t *testing.T) {
	store := newStore(t)
	file := save(t, store, "on-demand", true, 0)
	if file.Name != "on-demand-node-a-1700000000.zip" || !file.Created.Equal(start) {
		t.Error(file)
	}
	if got := names(t, store); !slices.Equal(got, []string{file.Name}) {
		t.Error("the plain file goes:", got)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := Plain(filepath.Join(store.Directory, file.Name), plain); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(plain); err != nil || string(content) != "content" {
		t.Error(string(content), err)
	}
	broken := filepath.Join(t.TempDir(), "broken.zip")
	if err := os.WriteFile(broken, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Plain(broken, plain); err == nil || !strings.Contains(err.Error(), broken) {
		t.Error(err)
	}
}

// Two servers of the same directory, or copies: the time in the name counts.
func TestListIsOldestFirst(t *testing.T) {
	store := newStore(t)
	if got := names(t, store); got != nil {
		t.Error(got)
	}
	second, first := save(t, store, "a", false, time.Hour), save(t, store, "b", false, 0)
	if err := os.WriteFile(filepath.Join(store.Directory, "c-node-a-1.part"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := names(t, store); !slices.Equal(got, []string{first.Name, second.Name}) {
		t.Error(got)
	}
}

func TestRetentionLeavesOtherNamesAlone(t *testing.T) {
	store := newStore(t)
	kept := save(t, store, "on-demand", false, 0)
	for i := range 4 {
		save(t, store, "etcd-snapshot", i%2 == 0, time.Duration(i+1)*time.Second)
	}
	if deleted, err := store.Prune("etcd-snapshot", 0); err != nil || deleted != nil {
		t.Error("no retention:", deleted, err)
	}
	deleted, err := store.Prune("etcd-snapshot", 2)
	if err != nil || !slices.Equal(deleted, []string{"etcd-snapshot-node-a-1700000001.zip", "etcd-snapshot-node-a-1700000002"}) {
		t.Error(deleted, err)
	}
	want := []string{kept.Name, "etcd-snapshot-node-a-1700000003.zip", "etcd-snapshot-node-a-1700000004"}
	if got := names(t, store); !slices.Equal(got, want) {
		t.Error(got)
	}
}

func TestDeleteIsByNameOnly(t *testing.T) {
	store := newStore(t)
	file := save(t, store, "on-demand", false, 0)
	outside := filepath.Join(filepath.Dir(store.Directory), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, given := range [][]string{nil, {"../outside"}, {outside}, {"no-such-snapshot"}} {
		if _, err := store.Delete(given); err == nil {
			t.Error(given)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	if deleted, err := store.Delete([]string{file.Name}); err != nil || !slices.Equal(deleted, []string{file.Name}) {
		t.Error(deleted, err)
	}
}

func TestOtherDirectoriesMustExist(t *testing.T) {
	store := newStore(t)
	store.Create = false
	if _, err := store.Save(t.Context(), "x", false, start); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := store.List(); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestOneSnapshotAtATime(t *testing.T) {
	store := newStore(t)
	begun, end := make(chan struct{}), make(chan struct{})
	store.Taker.Take = func(_ context.Context, file string) error {
		close(begun)
		<-end
		return os.WriteFile(file, nil, 0o600)
	}
	done := make(chan error)
	go func() {
		_, err := store.Save(t.Context(), "first", false, start)
		done <- err
	}()
	<-begun
	if _, err := store.Save(t.Context(), "second", false, start); !errors.Is(err, ErrBusy) || err.Error() != "snapshot save already in progress" {
		t.Error(err)
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSchedule(t *testing.T) {
	if err := Schedule(t.Context(), "every noon", func() {}); err == nil || !strings.Contains(err.Error(), "etcd-snapshot-schedule-cron") {
		t.Error(err)
	}
	ran := make(chan struct{}, 10)
	if err := Schedule(t.Context(), "@every 1s", func() { ran <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case <-ran:
		case <-time.After(30 * time.Second):
			t.Fatal("not run")
		}
	}
}
