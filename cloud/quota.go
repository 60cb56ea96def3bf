package cloud

import (
	"cmp"
	"container/heap"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// requestQuotas are AWS's default quotas of the requests that byokd sends, by
// IAM action, in requests per second for one account and Region.
//
// Source: AWS KMS Developer Guide, "Request quotas"; of tag:GetResources, Tag
// Editor User Guide, "Service quotas".
var requestQuotas = map[string]float64{
	"kms:CancelKeyDeletion":         5,
	"kms:CreateAlias":               5,
	"kms:CreateGrant":               50,
	"kms:CreateKey":                 5,
	"kms:DeleteImportedKeyMaterial": 15,
	"kms:DescribeKey":               2000,
	"kms:DisableKey":                5,
	"kms:EnableKey":                 5,
	"kms:GetKeyLastUsage":           5,
	"kms:GetKeyPolicy":              1000,
	"kms:GetKeyRotationStatus":      1000,
	"kms:GetParametersForImport":    1,
	"kms:ImportKeyMaterial":         15,
	"kms:ListAliases":               500,
	"kms:ListGrants":                100,
	"kms:ListKeyRotations":          100,
	"kms:ListKeys":                  500,
	"kms:ListResourceTags":          2000,
	"kms:PutKeyPolicy":              15,
	"kms:RotateKeyOnDemand":         5,
	"kms:ScheduleKeyDeletion":       15,
	"kms:TagResource":               10,
	"kms:UntagResource":             5,
	"kms:UpdateAlias":               5,
	"kms:UpdateKeyDescription":      5,
	cryptographic:                   10_000,
	"tag:GetResources":              15,
}

// cryptographic names the quota that all cryptographic operations with symmetric
// keys share.
const cryptographic = "kms:cryptographic operations (symmetric)"

// cryptographicQuotas are those of the Regions that have more of it.
//
// Source: AWS KMS Developer Guide, "Request quotas".
var cryptographicQuotas = map[string]float64{
	"us-east-1": 100_000, "us-west-2": 100_000, "eu-west-1": 100_000,
	"us-east-2": 20_000, "ap-southeast-1": 20_000, "ap-southeast-2": 20_000, "ap-northeast-1": 20_000,
	"eu-central-1": 20_000, "eu-west-2": 20_000,
}

// ImportAction is the scarce request: one a second by default, and one for each
// import.
const ImportAction = "kms:GetParametersForImport"

// DefaultQuotas returns AWS's default quotas of the KMS operations that byokd
// sends, in requests per second for one account and Region.
func DefaultQuotas() map[string]float64 {
	quotas := make(map[string]float64)
	for action, perSecond := range requestQuotas {
		if operation, ok := strings.CutPrefix(action, ServiceKMS+":"); ok && action != cryptographic {
			quotas[operation] = perSecond
		}
	}
	return quotas
}

// quotaOf returns the name of the quota that a request counts against.
func quotaOf(action string) string {
	if action == "kms:Encrypt" || action == "kms:Decrypt" {
		return cryptographic
	}
	return action
}

// defaultQuota returns AWS's default for a quota in a Region; 0: none is kept.
func defaultQuota(name, region string) float64 {
	if name == cryptographic {
		return cmp.Or(cryptographicQuotas[region], requestQuotas[cryptographic])
	}
	return requestQuotas[name]
}

// Where a quota comes from.
const (
	QuotaDefault    = "default"        // AWS's default
	QuotaConfigured = "byokd.toml"     // Settings.Quotas
	QuotaTold       = "service-quotas" // what Service Quotas tells of the account and Region
)

// A Priority says which of those who wait for a quota goes first.
type Priority int

// The priorities, lowest first. Within one, who came first goes first.
const (
	Background Priority = iota // looks that no job waits for
	Routine                    // jobs
	Expiring                   // jobs that renew what is about to expire
	Asked                      // jobs that a person asked for
)

type priorityKey struct{}

// WithPriority returns a context whose requests wait for quotas with a priority;
// the priority of others is Background.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

const (
	// quotaMargin is what is left of a quota, so that two requests that take
	// their way in different times do not meet.
	quotaMargin = 0.005

	// roundTrips is of how many answers the shortest round trip is taken.
	roundTrips = 16

	// farApart is from when on turns are so far apart that nearly every answer comes
	// before the next one. There the next one waits for an answer that is late, for as
	// long again at most: the request may have arrived late, too.
	farApart = 500 * time.Millisecond

	// After a request that was throttled a bucket goes on at this part of its
	// rate, is back at the rate after recovery, and grows faster from there. It is
	// the curve of CUBIC (RFC 9438) and of the AWS SDKs' adaptive retries, slower.
	lowered  = 0.7
	recovery = 2 * time.Minute

	// leastRate is the part of its quota below which a bucket is never lowered.
	leastRate = 1.0 / 20
)

// A bucket hands out turns at one request quota of an account and Region: at a
// steady rate, by priority, and to those who came first. It has no burst: AWS
// does not publish how large a burst its own buckets bear.
//
// Requests must be as far apart when they arrive as when they are sent, so a turn
// also waits for what the one before took longer on its way than the fastest do.
type bucket struct {
	action string
	region string
	log    *slog.Logger

	mu      sync.Mutex
	quota   float64   // requests per second
	source  string    // of quota
	next    time.Time // when the next turn may begin
	last    time.Time // when the latest one began
	began   time.Time // next, as its beginning left it
	open    bool      // its request has not been answered
	queue   turnQueue
	arrived int         // how many have ever queued
	timer   *time.Timer // nil: nobody has queued yet

	trips [roundTrips]time.Duration // the latest round trips
	seen  int                       // how many there ever were

	ceiling   float64   // the rate at which AWS last throttled; 0: the quota is kept to
	least     float64   // below which the rate is not lowered, while ceiling is set
	loweredAt time.Time // when
	throttled int       // requests that were, ever
}

func newBucket(action, region string, perSecond float64, source string, log *slog.Logger) *bucket {
	return &bucket{action: action, region: region, quota: perSecond, source: source, log: log}
}

// setQuota has the bucket keep to another quota from the next turn on. What it has
// learned since AWS throttled stands: a higher quota is what it grows to then, not
// what it goes on at.
func (b *bucket) setQuota(perSecond float64, source string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.source = source
	if perSecond == b.quota {
		return
	}
	now := time.Now()
	before := b.interval(now)
	b.quota = perSecond
	if !b.next.IsZero() {
		b.next = b.next.Add(b.interval(now) - before)
	}
	b.arm()
}

// A turn is the leave to send one request.
type turn struct{ at time.Time }

// wait returns when it is the caller's turn. A caller that gives up uses up no
// turn, so that the parked jobs of one HSM do not hold up those of another.
func (b *bucket) wait(ctx context.Context) (turn, error) {
	if err := ctx.Err(); err != nil {
		return turn{}, err
	}
	priority, _ := ctx.Value(priorityKey{}).(Priority)
	b.mu.Lock()
	if now := time.Now(); len(b.queue) == 0 && !now.Before(b.free()) {
		defer b.mu.Unlock()
		return b.begin(now), nil
	}
	b.arrived++
	w := &waiter{priority: priority, number: b.arrived, ready: make(chan turn, 1)}
	heap.Push(&b.queue, w)
	b.arm()
	b.mu.Unlock()
	select {
	case t := <-w.ready:
		return t, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.index >= 0 {
		heap.Remove(&b.queue, w.index)
	} else { // it came in the same moment
		b.unused(<-w.ready)
	}
	b.arm()
	return turn{}, ctx.Err()
}

// giveBack gives a turn back in which no request was sent.
func (b *bucket) giveBack(t turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unused(t)
	b.arm()
}

// unused is giveBack for who holds b.mu and arms the timer.
func (b *bucket) unused(t turn) {
	if !t.at.Equal(b.last) {
		return
	}
	b.open = false
	if b.next.Equal(b.began) { // else a throttle or another quota has moved it since
		b.next = t.at
	}
}

// free is when the next turn may begin, as things are.
func (b *bucket) free() time.Time {
	if apart := b.began.Sub(b.last); b.open && apart >= farApart {
		return b.next.Add(apart)
	}
	return b.next
}

// begin starts a turn.
func (b *bucket) begin(now time.Time) turn {
	b.last, b.began, b.open = now, now.Add(b.interval(now)), true
	b.next = b.began
	return turn{now}
}

// arm has the first of the queue served when its time comes.
func (b *bucket) arm() {
	switch {
	case len(b.queue) == 0:
		if b.timer != nil {
			b.timer.Stop()
		}
	case b.timer == nil:
		b.timer = time.AfterFunc(time.Until(b.free()), b.serve)
	default:
		b.timer.Reset(time.Until(b.free()))
	}
}

// serve lets the first of the queue begin if its time has come.
func (b *bucket) serve() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); len(b.queue) > 0 && !now.Before(b.free()) {
		heap.Pop(&b.queue).(*waiter).ready <- b.begin(now)
	}
	b.arm()
}

// answered tells of the answer to a turn's request. The request may have arrived
// as late as its answer is later than the fastest one's; until there were some, as
// late as its answer.
func (b *bucket) answered(t turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	trip := now.Sub(t.at)
	late := trip
	if b.seen >= roundTrips {
		late = max(0, trip-slices.Min(b.trips[:]))
	}
	b.trips[b.seen%roundTrips] = trip
	b.seen++
	if t.at.Equal(b.last) {
		b.open = false
		if next := t.at.Add(b.interval(now) + late); next.After(b.next) {
			b.next = next
		}
		b.arm()
	}
}

// throttle tells that AWS has refused a turn's request, since others use the
// quota too, or since it is less than byokd thinks. Of several requests that were
// on their way at once the first one lowers the rate.
func (b *bucket) throttle(t turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.throttled++
	if !t.at.After(b.loweredAt) {
		return
	}
	now := time.Now()
	level := slog.LevelDebug
	if b.ceiling == 0 {
		level = slog.LevelWarn
		b.least = b.quota * leastRate
	}
	b.ceiling, b.loweredAt = b.rate(now), now
	b.next = now.Add(b.interval(now))
	b.arm()
	b.log.Log(context.Background(), level, "AWS throttles: others use this quota too, or it is lower than byokd.toml says; byokd is slower for some minutes",
		"operation", b.action, "region", b.region, "quota", b.quota, "per_second", b.rate(now))
}

// rate is how many requests per second are sent.
func (b *bucket) rate(now time.Time) float64 {
	if b.ceiling == 0 {
		return b.quota
	}
	x := now.Sub(b.loweredAt).Seconds()/recovery.Seconds() - 1
	rate := max(b.ceiling*(1+(1-lowered)*x*x*x), b.least)
	if rate >= b.quota {
		b.ceiling = 0
		return b.quota
	}
	return rate
}

func (b *bucket) interval(now time.Time) time.Duration {
	return time.Duration(float64(time.Second) / (b.rate(now) * (1 - quotaMargin)))
}

// A waiter waits for its turn.
type waiter struct {
	priority Priority
	number   int // in the order of arrival
	ready    chan turn
	index    int // in the queue; -1: its turn has come
}

// A turnQueue is a heap of those who wait, the next one first.
type turnQueue []*waiter

func (q turnQueue) Len() int { return len(q) }

func (q turnQueue) Less(i, j int) bool {
	if q[i].priority != q[j].priority {
		return q[i].priority > q[j].priority
	}
	return q[i].number < q[j].number
}

func (q turnQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *turnQueue) Push(w any) {
	w.(*waiter).index = len(*q)
	*q = append(*q, w.(*waiter))
}

func (q *turnQueue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	w.index = -1
	return w
}

// bucketKey names a quota of an account, or of a credential while its account is
// not known, so that two credentials of one account share it.
type bucketKey struct {
	account, credential string // one of them is ""
	region              string
	name                string // an IAM action, or what several share
}

// bucket returns the bucket of an operation; nil: no quota is kept.
func (s *session) bucket(action string) *bucket {
	name := quotaOf(action)
	if defaultQuota(name, s.region) == 0 {
		return nil
	}
	key := bucketKey{region: s.region, name: name}
	s.mu.Lock()
	key.account = s.account
	s.mu.Unlock()
	if key.account == "" {
		key.credential = s.name
	}
	c := s.cloud
	c.mu.Lock()
	defer c.mu.Unlock()
	at := accountRegion{key.account, s.region}
	c.followQuotas(s, at)
	b := c.buckets[key]
	if b == nil {
		perSecond, source := c.quotaInForce(at, name)
		b = newBucket(name, s.region, perSecond, source, c.log)
		c.buckets[key] = b
	}
	return b
}

// A QuotaUse is how a request quota of one account and Region is used.
type QuotaUse struct {
	Account    string // "" while it is not known
	Credential string // while the account is not known
	Region     string
	Action     string  // IAM action, or what several share
	Quota      float64 // requests per second
	Source     string  // of Quota: one of the Quota constants
	PerSecond  float64 // what is kept to: less than Quota after AWS has throttled
	Waiting    int     // requests that wait for their turn
	Throttled  int     // requests that AWS has refused, since the start
}

// QuotaUses returns the quotas that have been used since the start, by account,
// credential, Region and action.
func (c *Cloud) QuotaUses() []QuotaUse {
	c.mu.Lock()
	buckets := maps.Clone(c.buckets)
	c.mu.Unlock()
	var uses []QuotaUse
	for key, b := range buckets {
		b.mu.Lock()
		uses = append(uses, QuotaUse{Account: key.account, Credential: key.credential, Region: key.region, Action: key.name,
			Quota: b.quota, Source: b.source, PerSecond: b.rate(time.Now()), Waiting: len(b.queue), Throttled: b.throttled})
		b.mu.Unlock()
	}
	slices.SortFunc(uses, func(a, b QuotaUse) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Credential, b.Credential), cmp.Compare(a.Region, b.Region), cmp.Compare(a.Action, b.Action))
	})
	return uses
}

// ImportRate returns how many GetParametersForImport a second byokd sends in the
// account and Region of a credential as things are: the quota, or less after AWS
// has throttled.
func (c *Cloud) ImportRate(credential, region string) float64 {
	c.mu.Lock()
	key := bucketKey{account: c.accounts[sessionKey{credential, region}], region: region, name: ImportAction}
	if key.account == "" {
		key.credential = credential
	}
	b := c.buckets[key]
	perSecond, _ := c.quotaInForce(accountRegion{key.account, region}, ImportAction)
	c.mu.Unlock()
	if b == nil { // none has been sent yet
		return perSecond
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rate(time.Now())
}
