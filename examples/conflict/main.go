// Command conflict shows what becomes of concurrent changes. Two shops, whose connection is
// cut, both sell what is in stock, and both change the name of an article. When they are
// connected again, nothing that was sold is lost, as each shop writes keys of its own; and of
// the two names one wins on both sides, while the other is kept for somebody to look at.
//
//	go run ./examples/conflict
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "conflict:", err)
		os.Exit(1)
	}
}

// shop is a replica of the stock.
type shop struct {
	*replicator.Replicator
	name string
	lost chan replicator.Conflict // what this shop was told of, and has kept
}

// openShop opens the replica of a shop, which dials the given peers.
func openShop(dir, name string, peers ...string) (*shop, error) {
	s := &shop{name: name, lost: make(chan replicator.Conflict, 10)}
	o := &replicator.Options{Name: name, Listen: "127.0.0.1:0", Peers: map[string]replicator.Meta{}, OnConflict: s.keep}
	for _, addr := range peers {
		o.Peers[addr] = nil
	}
	var err error
	s.Replicator, err = replicator.OpenFile(filepath.Join(dir, name), nil, o)
	return s, err
}

// keep keeps the name that has lost, for somebody to look at. The two names meet in one of
// the shops, or in both. So the key and the value are the same, whoever writes them: the key
// has the stamp of the change that has lost.
func (s *shop) keep(c replicator.Conflict) {
	if c.Lost.Deleted || strings.HasPrefix(string(c.Key), "lost/") {
		return
	}
	if err := s.Put(lostKey(c), c.LostValue, nil); err == nil {
		s.lost <- c
	}
}

// lostKey is where the loser of a conflict is kept.
func lostKey(c replicator.Conflict) []byte {
	return fmt.Appendf(nil, "lost/%s/%v", c.Key, c.Lost.Stamp)
}

// sell takes some of an article out of the stock. The key is one that only this shop writes,
// so what two shops sell at a time adds up.
func (s *shop) sell(article string, n int) error {
	key := []byte("sold/" + article + "/" + s.name)
	before, err := s.number(key)
	if err != nil {
		return err
	}
	return s.Put(key, []byte(strconv.Itoa(before+n)), nil)
}

// number reads a number; there is none: 0.
func (s *shop) number(key []byte) (int, error) {
	has, err := s.Has(key, nil)
	if err != nil || !has {
		return 0, err
	}
	text, err := s.Get(key, nil)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(text))
}

// stock is what is left of an article: what was bought less what all shops have sold.
func (s *shop) stock(article string) (int, error) {
	left, err := s.number([]byte("bought/" + article))
	if err != nil {
		return 0, err
	}
	it := s.NewIterator(util.BytesPrefix([]byte("sold/"+article+"/")), nil)
	defer it.Release()
	for it.Next() {
		sold, err := strconv.Atoi(string(it.Value()))
		if err != nil {
			return 0, err
		}
		left -= sold
	}
	return left, it.Error()
}

// run tells the story, and returns the first check that failed.
func run(out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "replicator-conflict-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	north, err := openShop(dir, "north")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, north.Close()) }()
	south, err := openShop(dir, "south", north.Addr().String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, south.Close()) }()

	steps := &steps{out: out, ctx: ctx, addr: north.Addr().String(), north: north, south: south}
	for _, step := range []func() error{steps.together, steps.apart, steps.again} {
		if err := step(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "Every check passed.")
	return nil
}

// steps are those of the story.
type steps struct {
	out          io.Writer
	ctx          context.Context
	addr         string
	north, south *shop
}

// together: both shops hold the same.
func (s *steps) together() error {
	if err := s.north.Put([]byte("bought/a1"), []byte("100"), nil); err != nil {
		return err
	}
	if err := s.north.Put([]byte("name/a1"), []byte("Chair"), nil); err != nil {
		return err
	}
	if err := s.south.SyncNow(s.ctx); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "Both shops have 100 chairs in their books.")
	return nil
}

// apart: the connection is cut, and both go on.
func (s *steps) apart() error {
	if err := s.south.RemovePeer(s.addr); err != nil {
		return err
	}
	for len(s.north.Status().Peers) > 0 { // the session is about to end
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
	err := errors.Join(
		s.north.sell("a1", 3), s.south.sell("a1", 4), s.south.sell("a1", 1),
		s.north.Put([]byte("name/a1"), []byte("Chair, oak"), nil),
		s.south.Put([]byte("name/a1"), []byte("Dining chair"), nil),
	)
	fmt.Fprintln(s.out, "Cut off from each other, north sells 3 and south 5, and both change the name.")
	return err
}

// again: they are connected, and hold the same.
func (s *steps) again() error {
	if err := s.south.AddPeer(s.addr, nil); err != nil {
		return err
	}
	if err := errors.Join(s.south.SyncNow(s.ctx), s.north.SyncNow(s.ctx)); err != nil {
		return err
	}
	var c replicator.Conflict
	select {
	case c = <-s.north.lost:
	case c = <-s.south.lost:
	case <-s.ctx.Done():
		return errors.New("nobody was told of the conflict")
	}
	if err := errors.Join(s.south.SyncNow(s.ctx), s.north.SyncNow(s.ctx)); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, shop := range []*shop{s.north, s.south} {
		left, err := shop.stock("a1")
		if err != nil {
			return err
		}
		if left != 92 {
			return fmt.Errorf("%s counts %d chairs, not 92", shop.name, left)
		}
		name, err := shop.Get([]byte("name/a1"), nil)
		if err != nil {
			return err
		}
		names[string(name)] = true
		kept, err := shop.Get(lostKey(c), nil)
		if err != nil {
			return err
		}
		if string(kept) != string(c.LostValue) || string(name) != string(c.WonValue) {
			return fmt.Errorf("%s has %q, and kept %q, of %q and %q", shop.name, name, kept, c.WonValue, c.LostValue)
		}
	}
	if len(names) != 1 {
		return fmt.Errorf("the shops have different names: %v", names)
	}
	fmt.Fprintf(s.out, "Connected again, both count 92 chairs: what each sold stands under a key of its own.\n")
	fmt.Fprintf(s.out, "Both call them %q now. Both have kept %q for somebody to look at.\n", c.WonValue, c.LostValue)
	return nil
}
