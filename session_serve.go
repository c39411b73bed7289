package replicator

// This file owns the serving side of a session: when a pull is answered.

// serve answers the peer's pulls and fetches.
func (s *session) serve() error {
	reader := &pageReader{d: s.store, covers: s.echo.cover}
	var entries entryWriter
	delay := newIdleTimer()
	defer delay.Stop()
	var waiting *pull
	var flush uint64
	for {
		late := false
		select {
		case <-s.ctx.Done():
			return nil
		case p := <-s.pulls:
			if err := s.meet(); err != nil { // whoever asks for something has read our hello
				return err
			}
			waiting = &p
		case keys := <-s.fetches:
			if err := s.meet(); err != nil { // whoever asks for something has read our hello
				return err
			}
			entries.reset()
			answered, n, err := reader.values(keys, &entries)
			if err == nil {
				err = s.send(frameValues, entries.values(answered, n)...)
			}
			if err != nil {
				return err
			}
			continue
		case flush = <-s.flush:
		case <-s.commits.wake:
		case <-delay.C:
			late = true
		}
		if waiting == nil {
			continue
		}
		switch s.due(waiting, flush, late) {
		case dueLater:
			delay.Reset(echoDelay)
			fallthrough
		case dueNever:
			continue
		}
		delay.Stop()
		entries.reset()
		p, n, err := reader.read(waiting, &entries)
		if err == nil {
			err = s.send(framePage, entries.page(&p, n)...)
		}
		if err != nil {
			return err
		}
		s.recordsOut.Add(int64(n))
		waiting = nil
	}
}

type due int

const (
	dueNow   due = iota
	dueLater     // all that is new came from the peer
	dueNever     // nothing is new
)

// due tells when a pull is to be answered.
func (s *session) due(p *pull, flush uint64, late bool) due {
	head := s.store.head()
	at := p.checkpoint.seq
	if !p.wait || p.scan != scanNone || p.seen.seq > at || !s.store.history.knows(&p.cursor, max(head, p.seen.seq)) {
		return dueNow
	}
	switch {
	case head <= at:
		return dueNever
	case late || at < flush || !s.echo.cover(at+1, head):
		return dueNow
	}
	return dueLater
}
