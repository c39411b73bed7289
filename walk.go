package replicator

import (
	"bytes"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb/iterator"
)

// walk goes through the index and the data side by side, in key order, and tells
// visit what each of them has of every key that is in either: record is nil
// without an index record, and has is false without a value. The arguments of
// visit are valid until it returns; its error ends the walk.
//
// index ranges over the index table, data over the user's keys.
func walk(index, data iterator.Iterator, visit func(key []byte, record *indexRecord, value []byte, has bool) error) error {
	indexed, has := index.First(), data.First()
	for indexed || has {
		var key []byte
		order := 0 // of the index's key to the data's
		switch {
		case !has:
			order = -1
		case !indexed:
			order = 1
		default:
			order = bytes.Compare(rowName(index.Key()), data.Key())
		}
		var found *indexRecord
		if order <= 0 {
			key = rowName(index.Key())
			record, err := parseIndexRecord(index.Value())
			if err != nil {
				return fmt.Errorf("%w: index of key %.64q", err, key)
			}
			found = &record
		}
		var value []byte
		if order >= 0 {
			key, value = data.Key(), data.Value()
		}
		if err := visit(key, found, value, order >= 0); err != nil {
			return err
		}
		if order <= 0 {
			indexed = index.Next()
		}
		if order >= 0 {
			has = data.Next()
		}
	}
	return firstError(index.Error(), data.Error())
}
