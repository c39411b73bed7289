package replicator

import (
	"bytes"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
)

// WithBootID returns the options with a boot id of the test's choice.
func WithBootID(o Options, id string) *Options {
	o.bootID = func() string { return id }
	return &o
}

// Versions returns the version of every key ever written, tombstones included.
func Versions(db *leveldb.DB) (map[string]Version, error) {
	versions := map[string]Version{}
	it := db.NewIterator(tableRange(tableIndex), nil)
	defer it.Release()
	for it.Next() {
		record, err := parseIndexRecord(it.Value())
		if err != nil {
			return nil, err
		}
		versions[string(rowName(it.Key()))] = record.Version
	}
	return versions, it.Error()
}

// CheckConsistent returns what is wrong with how data, index and log fit
// together, in a database that is quiet.
func CheckConsistent(r *Replicator) error {
	snap, err := r.db.GetSnapshot()
	if err != nil {
		return err
	}
	defer snap.Release()
	live := 0
	index := snap.NewIterator(tableRange(tableIndex), nil)
	defer index.Release()
	for index.Next() {
		key := rowName(index.Key())
		record, err := parseIndexRecord(index.Value())
		if err != nil {
			return err
		}
		has, err := snap.Has(key, nil)
		if err != nil {
			return err
		}
		if has == record.Deleted {
			return fmt.Errorf("key %q: deleted is %v in the index, there is a value: %v", key, record.Deleted, has)
		}
		if has {
			live++
		}
		if record.seq < r.floor {
			continue
		}
		row, err := snap.Get(logKey(record.seq), nil)
		if err != nil {
			return fmt.Errorf("key %q: log record %d: %w", key, record.seq, err)
		}
		version, logged, err := parseLogRecord(row)
		if err != nil {
			return err
		}
		if version != record.Version || !bytes.Equal(logged, key) {
			return fmt.Errorf("key %q: index says %v at %d, the log says %q, %v", key, record.Version, record.seq, logged, version)
		}
	}
	it := newUserIterator(snap, nil, nil)
	defer it.Release()
	for it.Next() {
		live--
	}
	if live != 0 {
		return fmt.Errorf("%d more live keys in the index than in the data", live)
	}
	records := uint64(0)
	log := snap.NewIterator(tableRange(tableLog), nil)
	defer log.Release()
	for log.Next() {
		records++
	}
	if status := r.Status(); status.LogRecords != records || status.Head != r.commits.head {
		return fmt.Errorf("status counts %d log records up to %d, there are %d up to %d",
			status.LogRecords, status.Head, records, r.commits.head)
	}
	return nil
}
