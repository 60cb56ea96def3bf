package cloud

import (
	"context"
	"log/slog"
	"net"
	"time"
)

// A Bucket is one quota for tests.
type Bucket struct{ b *bucket }

func NewBucket(perSecond float64) Bucket {
	return Bucket{newBucket("kms:Test", "", perSecond, QuotaDefault, slog.New(slog.DiscardHandler))}
}

func (b Bucket) Wait(ctx context.Context) (turn, error) { return b.b.wait(ctx) }
func (b Bucket) Answered(t turn)                        { b.b.answered(t) }
func (b Bucket) GiveBack(t turn)                        { b.b.giveBack(t) }
func (b Bucket) Throttle(t turn)                        { b.b.throttle(t) }
func (b Bucket) SetQuota(perSecond float64)             { b.b.setQuota(perSecond, QuotaTold) }

func (b Bucket) Rate() float64 {
	b.b.mu.Lock()
	defer b.b.mu.Unlock()
	return b.b.rate(time.Now())
}

// What a bucket reckons with.
const (
	QuotaMargin = quotaMargin
	Recovery    = recovery
	LeastRate   = leastRate
)

// When Service Quotas is asked again.
const (
	QuotasLifetime  = quotasLifetime
	FirstQuotaRetry = firstQuotaRetry
)

// ListLimit is the bound of FindKeys without the tagging API.
const ListLimit = listLimit

// Dial has all connections made by dial.
func (c *Cloud) Dial(dial func(ctx context.Context, network, address string) (net.Conn, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, err := c.openTransport()
	if err == nil {
		t.DialContext = dial
	}
	return err
}
