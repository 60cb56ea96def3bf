package daemon_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"byokd/cloud/awssim"
)

// newWaveWorld is a world with groups that rotate in place at one time, and others that
// make a fresh KMS key then; each has its first generation, and byokd keeps to quotas
// from then on; with "" to AWS's default ones, as AWS does. byokd's clock stands five hours before the wave, which is
// at the time that is returned.
func newWaveWorld(t testing.TB, inPlace, fresh int, quotas string) (w *world, c *tally, wave time.Time) {
	t.Helper()
	w = newWorld(t)
	wave = w.sim.Now().UTC().Truncate(time.Hour).Add(6 * time.Hour)
	schedule := fmt.Sprintf("schedule = \"0 %d * * *\"\ntimezone = \"UTC\"\n", wave.Hour())
	for i := range inPlace {
		w.group(fmt.Sprintf("place-%02d", i), schedule+"mode = \"in-place\"", "")
	}
	for i := range fresh {
		w.group(fmt.Sprintf("fresh-%02d", i), schedule, "")
	}
	w.at(wave.Add(-5 * time.Hour))
	w.start()
	w.untilAll(inPlace+fresh, 1)
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.quotas = quotas
	w.configure("")
	if quotas == "" {
		w.sim.SetQuotas(&awssim.Quotas{})
	}
	c = &tally{}
	c.taken()
	w.faults(nil, c.note)
	w.start()
	return w, c, wave
}

// twoASecond is the [aws.quotas] of waves in tests.
const twoASecond = "get_parameters_for_import = 2\n"

// moved moves AWS's clock and byokd's to a time.
func (w *world) moved(to time.Time) {
	w.sim.Advance(to.Sub(w.sim.Now()))
	w.at(to)
}

// TestFetchedAhead: what rotations in place at one time would wait for is there before
// them, and nothing else is asked for.
func TestFetchedAhead(t *testing.T) {
	const inPlace, fresh, waits = 9, 3, 8 // at two a second, those from the fifth on wait for two seconds, with the fresh ones before
	w, _, wave := newWaveWorld(t, inPlace, fresh, twoASecond)
	before := w.requests("GetParametersForImport")
	w.moved(wave.Add(-20 * time.Minute))
	w.until("import parameters are fetched ahead", func() bool { return w.log.contains("fetched ahead of a wave") })
	if n := w.requests("GetParametersForImport") - before; n != waits {
		t.Errorf("import parameters were fetched %d times ahead, want %d", n, waits)
	}
	w.moved(wave.Add(time.Second))
	w.untilAll(inPlace+fresh, 2)
	if n := w.requests("GetParametersForImport") - before; n != inPlace+fresh {
		t.Errorf("import parameters were fetched %d times for %d rotations", n, inPlace+fresh)
	}
}

// TestFetchedAheadInVain: parameters that are too old by then, that KMS refuses, or that
// cannot be fetched ahead, are fetched by the rotations.
func TestFetchedAheadInVain(t *testing.T) {
	const inPlace, waits = 7, 3
	t.Run("too old", func(t *testing.T) {
		w, _, wave := newWaveWorld(t, inPlace, 0, twoASecond)
		before := w.requests("GetParametersForImport")
		w.moved(wave.Add(-20 * time.Minute))
		w.until("import parameters are fetched ahead", func() bool { return w.log.contains("fetched ahead of a wave") })
		w.moved(wave.Add(25 * time.Hour)) // byokd's machine slept
		w.untilAll(inPlace, 2)
		if n := w.requests("GetParametersForImport") - before; n != waits+inPlace {
			t.Errorf("import parameters were fetched %d times, want %d", n, waits+inPlace)
		}
	})
	t.Run("refused", func(t *testing.T) {
		w, _, wave := newWaveWorld(t, inPlace, 0, twoASecond)
		before := w.requests("GetParametersForImport")
		var refused sync.Map // once for each KMS key
		w.moved(wave.Add(-20 * time.Minute))
		w.until("import parameters are fetched ahead", func() bool { return w.log.contains("fetched ahead of a wave") })
		w.faults(func(r awssim.Request) *awssim.Fault {
			if r.Operation != "ImportKeyMaterial" {
				return nil
			}
			if _, again := refused.LoadOrStore(r.KeyID, true); again {
				return nil
			}
			return &awssim.Fault{Code: "InvalidImportTokenException"}
		}, nil)
		w.moved(wave.Add(time.Second))
		w.untilAll(inPlace, 2)
		if n := w.requests("GetParametersForImport") - before; n != 2*inPlace {
			t.Errorf("import parameters were fetched %d times, want %d", n, 2*inPlace)
		}
	})
	t.Run("denied for one", func(t *testing.T) {
		w, _, wave := newWaveWorld(t, inPlace, 0, twoASecond)
		before, denied := w.requests("GetParametersForImport"), w.alias("place-05")
		w.deny(func(r awssim.Request) bool { return r.Operation == "GetParametersForImport" && r.KeyID == denied })
		w.moved(wave.Add(-20 * time.Minute))
		w.until("import parameters are fetched ahead", func() bool { return w.log.contains("fetched ahead of a wave") })
		w.moved(wave.Add(-10 * time.Minute)) // another look asks for nothing again
		w.faults(nil, nil)
		w.moved(wave.Add(time.Second))
		w.untilAll(inPlace, 2)
		if n := w.requests("GetParametersForImport") - before; n != inPlace+1 {
			t.Errorf("import parameters were fetched %d times, want %d", n, inPlace+1)
		}
	})
}
