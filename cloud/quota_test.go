package cloud_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"byokd/cloud"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := cloud.NewPace(0.5)
		start := time.Now()
		var mu sync.Mutex
		var turns []time.Duration
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() {
				if err := wait(t.Context()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				turns = append(turns, time.Since(start))
			})
		}
		group.Wait()
		for i, at := range turns {
			if want := time.Duration(i) * 2 * time.Second; at != want {
				t.Errorf("turn %d came after %v, want %v", i, at, want)
			}
		}

		time.Sleep(time.Hour) // no burst builds up
		start = time.Now()
		for range 3 {
			wait(t.Context())
		}
		if got := time.Since(start); got != 4*time.Second {
			t.Errorf("three turns after an hour took %v, want 4s", got)
		}
	})
}

// A caller that gives up uses up no turn, neither the one that waits for the
// time nor the ones that queue behind it.
func TestPaceGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := cloud.NewPace(1)
		wait(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if err := wait(ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		group.Wait()
		start := time.Now()
		wait(t.Context())
		if got := time.Since(start); got != time.Second {
			t.Errorf("the next turn took %v, want 1s", got)
		}
	})
}
