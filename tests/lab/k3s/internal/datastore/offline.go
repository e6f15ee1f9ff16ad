package datastore

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	lockTimeout   = 5 * time.Second
	revisionBytes = 17 // of a key in the store; a deletion has one byte more
)

// ReadFile reads the present values below a prefix from the database of a member that does not run, or from a
// snapshot. What is not there yet has no values. Errors: an unreadable file, one that another process has locked.
func ReadFile(file, prefix string) (map[string][]byte, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	database, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return nil, err
	}
	defer database.Close()
	values := map[string][]byte{}
	return values, database.View(func(transaction *bbolt.Tx) error {
		bucket := transaction.Bucket([]byte("key"))
		if bucket == nil {
			return nil
		}
		// In the order of revisions: later ones win.
		return bucket.ForEach(func(revision, content []byte) error {
			if !bytes.Contains(content, []byte(prefix)) {
				return nil
			}
			var pair mvccpb.KeyValue
			if err := pair.Unmarshal(content); err != nil {
				return err
			}
			switch {
			case !bytes.HasPrefix(pair.Key, []byte(prefix)):
			case len(revision) > revisionBytes:
				delete(values, string(pair.Key))
			default:
				values[string(pair.Key)] = pair.Value
			}
			return nil
		})
	})
}

// File is the database in the data directory of a member.
func File(directory string) string { return filepath.Join(directory, "member", "snap", "db") }
