package jobstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A writer has one transaction at a time written. What is to be written while one
// waits for the disk is written together in the next: a commit costs what the disk
// takes to say that it is safe, however much is in it, and many jobs that record
// their steps at once would otherwise wait for each other's.
type writer struct {
	turn chan struct{} // held by whoever writes
	last int           // how many were written together last; guarded by the turn

	mu      sync.Mutex
	waiting []*writing
}

// gathering is how long a commit waits for more to be in it, as long as there was more
// than one in the last: a quicker store would write the same in more commits, and each
// costs as much processor time as a few records. A job by itself never waits, since it
// does not write two things at once.
const gathering = 4 * time.Millisecond

// A writing is what one caller has to write.
type writing struct {
	f    func(*tx) error
	once bool       // f must not be run again
	done chan error // buffered; gets one value
}

// write has f run in a transaction, perhaps beside what others write, and returns
// when it is on disk. An error of f undoes what f has done and nothing else. f may be
// run twice, where the first time comes to nothing.
func (s *Store) write(ctx context.Context, f func(*tx) error) error {
	return s.writeWhat(ctx, &writing{f, false, make(chan error, 1)})
}

func (s *Store) writeWhat(ctx context.Context, w *writing) error {
	if s.w == nil {
		return ErrReadOnly
	}
	if t := s.within(ctx); t != nil {
		if err := t.part(w.f); !errors.Is(err, errNothing) {
			return err
		}
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.writer.mu.Lock()
	s.writer.waiting = append(s.writer.waiting, w)
	s.writer.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case s.writer.turn <- struct{}{}:
		defer func() { <-s.writer.turn }()
	case <-ctx.Done():
		if s.writer.withdraw(w) {
			return ctx.Err()
		}
		return <-w.done
	}
	select {
	case err := <-w.done: // by who had the turn before
		return err
	default:
	}
	if s.writer.last > 1 {
		time.Sleep(gathering)
	}
	all := s.writer.take()
	s.writer.last = len(all)
	s.writeAll(ctx, all)
	return <-w.done
}

// errNothing: there was nothing to write, so that there is nothing to commit. Its
// caller gets nil.
var errNothing = errors.New("nothing to write")

// withdraw takes back what nobody has begun to write.
func (w *writer) withdraw(one *writing) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.waiting, one)
	if i < 0 {
		return false
	}
	w.waiting = slices.Delete(w.waiting, i, i+1)
	return true
}

// take returns all that waits.
func (w *writer) take() []*writing {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.waiting
	w.waiting = nil
	return all
}

// writeAll writes what several callers have to write, in their order, and tells
// each how it went.
//
// Savepoints, by which one of several can be undone by itself, have SQLite copy every
// page that each of them changes. So first there are none, and where one of them
// fails, all are undone and written again with them: a function that a caller gives to
// write gives the same when it is run again, but for that of Together.
func (s *Store) writeAll(ctx context.Context, all []*writing) {
	once := slices.ContainsFunc(all, func(w *writing) bool { return w.once })
	errs := make([]error, len(all))
	changed, err := s.writeOnce(ctx, all, errs, once && len(all) > 1)
	if errors.Is(err, errAgain) {
		clear(errs)
		changed, err = s.writeOnce(ctx, all, errs, true)
	}
	if err == nil && s.changed != nil && len(changed) > 0 {
		s.changed(changed)
	}
	for i, w := range all {
		if err != nil && errs[i] == nil {
			errs[i] = err
		}
		if errors.Is(errs[i], errNothing) {
			errs[i] = nil
		}
		w.done <- errs[i]
	}
}

// errAgain: one of several has failed, and none is written.
var errAgain = errors.New("one of several failed")

// writeOnce runs all in one transaction, and puts into errs how each went by itself.
func (s *Store) writeOnce(ctx context.Context, all []*writing, errs []error, savepoints bool) (changed []string, err error) {
	t := &tx{store: s, now: s.now(), local: s.local(), ids: &s.ids}
	return t.run(ctx, func(t *tx) error {
		if len(all) == 1 {
			return all[0].f(t)
		}
		some := errNothing
		for i, w := range all {
			if savepoints {
				errs[i] = t.part(w.f)
			} else {
				wrote := t.wrote
				t.wrote = false
				if errs[i] = cmp.Or(w.f(t), t.failed); errs[i] != nil && (t.wrote || !errors.Is(errs[i], errNothing)) {
					return errAgain
				}
				t.wrote = t.wrote || wrote
			}
			if errors.Is(errs[i], errLost) {
				return errs[i]
			}
			if errs[i] == nil {
				some = nil
			}
		}
		return some
	})
}
