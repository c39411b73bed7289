// Package simtest is a world for replicas to be tested in: a network and disks that
// are in memory, and do on command what real ones do at the worst of times.
//
// A [Network] has hosts that listen, dial, and talk over connections like TCP's. It
// can be partitioned; connections can be cut after any number of bytes, and frozen,
// so that nothing passes and nobody is told. A route can be slow, or far: what is
// written to a connection fills its buffer, and a write that meets its deadline has
// written a part. An address can be redirected to another one.
//
// A [Disk] is a goleveldb storage. It can be copied at any moment, as if a process
// were killed there, or the power cut, with more or less of a loss. It can run out of
// room, and any of its operations can be held up or made to fail. A test that has each
// of them fail once looks like this:
//
//	for n := int64(1); ; n++ {
//		disk := simtest.NewDisk()
//		disk.SetFault(simtest.Failure{From: n, Times: 1}.Fault())
//		… // work on the disk, and check what is left of it
//		if disk.Failed() == 0 {
//			return // there are fewer operations than n
//		}
//	}
//
// All waiting is done by sync.Cond and by timers, thus durably in a
// testing/synctest bubble: there, an hour of a simulated network takes no time.
// Nothing here depends on a bubble, however.
//
// # What it is kinder about than reality
//
//   - A connection that is cut tells both its ends at once, and a dial is refused at
//     once. A half-open one is made by [Network.Freeze].
//   - Bytes are neither corrupted nor reordered, within a connection or a file.
//   - Room in a connection's buffer shows as soon as the other end has read, over any
//     distance, and connections that share a route wait in one line, with no losses.
//   - Creating, removing and renaming a file is durable at once, and so is SetMeta: a
//     real disk's directories have to be synced, too.
//   - A sync that failed can be done again, with full effect. After that of a real
//     disk, what it did not write may be lost.
//   - Files that are open when they are removed can be read on.
package simtest
