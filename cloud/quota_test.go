package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"byokd/cloud"
	"byokd/cloud/awssim"
)

// apart is how far apart a bucket lets requests be sent.
func apart(perSecond float64) time.Duration {
	return time.Duration(float64(time.Second) / (perSecond * (1 - cloud.QuotaMargin)))
}

func take(t *testing.T, b cloud.Bucket) {
	t.Helper()
	turn, err := b.Wait(t.Context())
	if err != nil {
		t.Error(err)
	}
	b.Answered(turn)
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(0.5)
		start := time.Now()
		var mu sync.Mutex
		var turns []time.Duration
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() {
				take(t, b)
				mu.Lock()
				defer mu.Unlock()
				turns = append(turns, time.Since(start))
			})
		}
		group.Wait()
		for i, at := range turns {
			if want := time.Duration(i) * apart(0.5); at != want {
				t.Errorf("turn %d came after %v, want %v", i, at, want)
			}
		}

		time.Sleep(time.Hour) // no burst builds up
		start = time.Now()
		for range 3 {
			take(t, b)
		}
		if got, want := time.Since(start), 2*apart(0.5); got != want {
			t.Errorf("three turns after an hour took %v, want %v", got, want)
		}
	})
}

// A caller that gives up uses up no turn, neither the one that waits for the
// time nor the ones that queue behind it.
func TestBucketGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(1)
		take(t, b)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if _, err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		group.Wait()
		start := time.Now()
		take(t, b)
		if got := time.Since(start); got != apart(1) {
			t.Errorf("the next turn took %v, want %v", got, apart(1))
		}
		if _, err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("one that has given up before it asks: %v", err)
		}
	})
}

// Who is urgent goes first; among equals who came first.
func TestBucketPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(1)
		take(t, b)
		var mu sync.Mutex
		var order []string
		var group sync.WaitGroup
		come := func(name string, p cloud.Priority) {
			group.Go(func() {
				if _, err := b.Wait(cloud.WithPriority(t.Context(), p)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			})
			synctest.Wait()
		}
		for i := range 3 {
			come(fmt.Sprint("background ", i), cloud.Background)
			come(fmt.Sprint("routine ", i), cloud.Routine)
			come(fmt.Sprint("asked ", i), cloud.Asked)
			come(fmt.Sprint("expiring ", i), cloud.Expiring)
		}
		group.Wait()
		want := []string{"asked 0", "asked 1", "asked 2", "expiring 0", "expiring 1", "expiring 2",
			"routine 0", "routine 1", "routine 2", "background 0", "background 1", "background 2"}
		if d := cmp.Diff(want, order); d != "" {
			t.Error(d)
		}
	})
}

// Requests are as far apart when they arrive as the quota asks for, whatever time
// each takes on its way, there and back.
func TestBucketArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(1)
		there := []time.Duration{300, 20, 20, 400, 20, 90, 20, 21, 20, 350, 20} // ms; the first makes a connection
		back := []time.Duration{20, 20, 300, 20, 20, 20, 100, 20, 20, 20, 20}
		there, back = slices.Repeat(there, 3), slices.Repeat(back, 3) // the fastest round trip is known from the 17th on
		start := time.Now()
		var arrivals []time.Duration
		for i := range there {
			turn, err := b.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(there[i] * time.Millisecond)
			arrivals = append(arrivals, time.Since(start))
			time.Sleep(back[i] * time.Millisecond)
			b.Answered(turn)
		}
		for i := 1; i < len(arrivals); i++ {
			if d := arrivals[i] - arrivals[i-1]; d < time.Second {
				t.Errorf("request %d arrived %v after the one before", i, d)
			}
		}
		if longest := start.Add(time.Duration(len(there)-1)*apart(1) + 5*time.Second); time.Now().After(longest) {
			t.Errorf("it took %v", time.Since(start))
		}
	})
}

// A scarce turn waits for an answer that is late, since the request may have arrived
// late; for one that does not come it waits as long again as for a turn.
func TestBucketWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(1)
		start := time.Now()
		first, err := b.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var arrived time.Duration
		go func() {
			time.Sleep(1400 * time.Millisecond)
			arrived = time.Since(start)
			time.Sleep(20 * time.Millisecond)
			b.Answered(first)
		}()
		if _, err := b.Wait(t.Context()); err != nil { // and it is never answered
			t.Fatal(err)
		}
		second := time.Since(start)
		if apart := second - arrived; apart < time.Second {
			t.Errorf("the second was sent %v after the first had arrived", apart)
		}
		take(t, b)
		if got, want := time.Since(start)-second, 2*apart(1); got != want {
			t.Errorf("the third came %v after the second, want %v", got, want)
		}
	})
}

// A turn in which nothing was sent is the next one's at once, unless AWS has throttled
// meanwhile.
func TestBucketGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(1)
		turn, _ := b.Wait(t.Context())
		b.GiveBack(turn)
		start := time.Now()
		first, _ := b.Wait(t.Context())
		if got := time.Since(start); got != 0 {
			t.Errorf("after a turn that was given back the next came after %v", got)
		}
		second, _ := b.Wait(t.Context())
		b.Throttle(first)
		start = time.Now()
		b.GiveBack(second)
		take(t, b)
		if got, want := time.Since(start), apart(0.7); got.Round(time.Millisecond) != want.Round(time.Millisecond) {
			t.Errorf("after a throttle the next turn came after %v, want %v", got, want)
		}
	})
}

// A bucket that AWS throttles yields, and takes its quota back by and by.
func TestBucketLearns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cloud.NewBucket(10)
		near := func(want float64) {
			t.Helper()
			if got := b.Rate(); math.Abs(got-want) > 0.01 {
				t.Errorf("%v a second, want %v", got, want)
			}
		}
		one, _ := b.Wait(t.Context())
		two, _ := b.Wait(t.Context())
		b.Throttle(one)
		near(7)
		b.Throttle(two) // was on its way already
		near(7)
		start := time.Now()
		take(t, b)
		if got := time.Since(start); got.Round(time.Millisecond) != apart(7).Round(time.Millisecond) {
			t.Errorf("the next turn came after %v", got)
		}
		time.Sleep(cloud.Recovery / 2)
		near(9.625)
		time.Sleep(cloud.Recovery)
		near(10)

		for range 50 {
			turn, _ := b.Wait(t.Context())
			b.Throttle(turn)
		}
		near(10 * cloud.LeastRate)
		time.Sleep(10 * time.Minute)
		near(10)
	})
}

// Another consumer takes half of a quota: byokd throttles seldom, gets the rest of
// it, and the whole when the other one has gone.
func TestQuotaShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// AWS's bucket, in its strictest reading: it never holds more than one.
		left, at := 1.0, time.Now()
		var mu sync.Mutex
		charge := func() bool {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			left, at = min(1, left+now.Sub(at).Seconds()), now
			if left < 1 {
				return false
			}
			left--
			return true
		}
		b := cloud.NewBucket(1)
		work := func(d time.Duration) (sent, throttled int) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				turn, err := b.Wait(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Microsecond) // on its way
				ok := charge()
				b.Answered(turn)
				if sent++; !ok {
					throttled++
					b.Throttle(turn)
				}
			}
			return sent, throttled
		}
		if sent, throttled := work(10 * time.Minute); throttled > 0 || sent < 590 {
			t.Errorf("alone: %d sent, %d throttled", sent, throttled)
		}

		ctx, leave := context.WithCancel(t.Context())
		var other atomic.Int64
		var group sync.WaitGroup
		group.Go(func() {
			for ctx.Err() == nil {
				for !charge() {
					time.Sleep(7 * time.Millisecond) // it insists
				}
				other.Add(1)
				time.Sleep(2 * time.Second)
			}
		})
		sent, throttled := work(30 * time.Minute)
		t.Logf("shared for half an hour: %d sent, %d of them throttled; the other one got %d", sent, throttled, other.Load())
		if got := sent - throttled; got < 600 || throttled > 60 {
			t.Errorf("shared: %d sent, %d throttled", sent, throttled)
		}
		leave()
		group.Wait()
		work(10 * time.Minute)
		if rate := b.Rate(); rate != 1 {
			t.Errorf("alone again: %v a second", rate)
		}
		if sent, throttled := work(10 * time.Minute); throttled > 0 || sent < 590 {
			t.Errorf("alone again: %d sent, %d throttled", sent, throttled)
		}
	})
}

// Every operation that byokd sends counts against its quota, with the real SDK
// against a simulator that keeps to AWS's default quotas. Another consumer of the
// account comes on top.
func TestQuotasOnAWSSim(t *testing.T) {
	var throttled, all atomic.Int64
	server := httptest.NewServer(awssim.New(awssim.Options{
		Quotas: &awssim.Quotas{PerSecond: map[string]float64{"kms:CreateKey": 25, "kms:UpdateAlias": 40}},
		After: func(r awssim.Request) *awssim.Fault {
			all.Add(1)
			if r.Code == "ThrottlingException" {
				throttled.Add(1)
			}
			return nil
		},
	}))
	defer server.Close()
	s := settingsFor(server.URL)
	s.Quotas = map[string]float64{"CreateKey": 25, "UpdateAlias": 40}
	var mu sync.Mutex
	codes := make(map[string]int)
	s.Observer = func(operation, code string, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		codes[operation+" "+code]++
	}
	c := open(t, s)
	k, err := c.KMS("prod", region)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Account(t.Context()); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			key, err := k.CreateKey(t.Context(), "", "", nil)
			if err != nil {
				t.Error(err)
				return
			}
			if i == 0 {
				err = k.CreateAlias(t.Context(), "alias/a", key.ID)
			} else if _, err = k.DescribeKey(t.Context(), key.ID); err != nil {
				t.Error(err)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := throttled.Load(); n != 0 {
		t.Errorf("%d of %d requests were throttled: %v", n, all.Load(), codes)
	}
	if codes["kms:CreateKey OK"] != 40 || codes["kms:DescribeKey OK"] != 39 {
		t.Errorf("sent %v", codes)
	}
	i := slices.IndexFunc(c.QuotaUses(), func(u cloud.QuotaUse) bool { return u.Action == "kms:CreateKey" })
	if i < 0 {
		t.Fatal("the quota of CreateKey is not in use")
	}
	if d := cmp.Diff(cloud.QuotaUse{Account: account, Region: region, Action: "kms:CreateKey", Quota: 25, Source: cloud.QuotaConfigured, PerSecond: 25}, c.QuotaUses()[i]); d != "" {
		t.Error(d)
	}
}

// Where AWS throttles all the same, the work goes on.
func TestThrottledByOthers(t *testing.T) {
	sim := awssim.New(awssim.Options{Quotas: &awssim.Quotas{PerSecond: map[string]float64{"kms:DisableKey": 4}}})
	server := httptest.NewServer(sim)
	defer server.Close()
	s := settingsFor(server.URL)
	s.Quotas = map[string]float64{"DisableKey": 400} // far more than there is
	var throttled atomic.Int64
	s.Observer = func(_, code string, _ time.Duration) {
		if code == "ThrottlingException" {
			throttled.Add(1)
		}
	}
	k := openKMS(t, s)
	key, err := k.CreateKey(t.Context(), "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	disabled := 0
	for try := 0; disabled < 12 && try < 60; try++ {
		switch err := k.DisableKey(t.Context(), key.ID); {
		case err == nil, errors.Is(err, cloud.ErrState):
			disabled++
		case !errors.Is(err, cloud.ErrThrottled):
			t.Fatal(err)
		}
	}
	if disabled < 12 || throttled.Load() == 0 {
		t.Errorf("%d of 12 got through, %d were throttled", disabled, throttled.Load())
	}
}
