package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas/types"
)

// ServiceQuotasAction is the one thing that is asked of Service Quotas.
const ServiceQuotasAction = "servicequotas:ListServiceQuotas"

const (
	// quotasLifetime is how long an answer of Service Quotas counts: quotas are
	// raised by a person, or by AWS upon a request that takes days.
	quotasLifetime = 24 * time.Hour

	// firstQuotaRetry is when Service Quotas is asked again that has not told the
	// quotas; each further try comes after twice the time, up to quotasLifetime.
	firstQuotaRetry = 10 * time.Minute

	// quotaPages bounds an answer: KMS has some 70 quotas, and a page has 100 at
	// most (Service Quotas API Reference, ListServiceQuotas).
	quotaPages = 20

	// Values beyond these bounds, in requests per second, are none that AWS gives:
	// its lowest default is 0.1, and its highest 100,000 (AWS General Reference,
	// "AWS KMS endpoints and quotas").
	leastQuota = 0.01
	mostQuota  = 10_000_000
)

// quotaCodes are the codes of Service Quotas for what buckets are kept of. Those
// without a code there are known by their name, such as GetKeyLastUsage.
//
// Source: AWS General Reference, "AWS KMS endpoints and quotas".
var quotaCodes = map[string]string{
	"L-635264CC": "kms:CancelKeyDeletion",
	"L-F7504F73": "kms:CreateAlias",
	"L-0428A42E": "kms:CreateGrant",
	"L-32B67F4A": "kms:CreateKey",
	"L-1233BF9B": "kms:DeleteImportedKeyMaterial",
	"L-FAE8F084": "kms:DescribeKey",
	"L-6B8C93BD": "kms:DisableKey",
	"L-BD96F100": "kms:EnableKey",
	"L-A2A30EC6": "kms:GetKeyPolicy",
	"L-D7711EF4": "kms:GetKeyRotationStatus",
	"L-515A0541": ImportAction,
	"L-99631835": "kms:ImportKeyMaterial",
	"L-BF3F8F1D": "kms:ListAliases",
	"L-D39AB822": "kms:ListGrants",
	"L-171660E4": "kms:ListKeyRotations",
	"L-8A08DAEA": "kms:ListKeys",
	"L-FB6513A2": "kms:ListResourceTags",
	"L-9DDDE6CA": "kms:PutKeyPolicy",
	"L-88313D4A": "kms:ScheduleKeyDeletion",
	"L-7D6DE447": "kms:TagResource",
	"L-6375F442": "kms:UntagResource",
	"L-DB3BF542": "kms:UpdateAlias",
	"L-A3828E1F": "kms:UpdateKeyDescription",
	"L-6E3AF000": cryptographic,
}

// quotaPeriods are the units that a quota may be given in.
var quotaPeriods = map[types.PeriodUnit]time.Duration{
	types.PeriodUnitMicrosecond: time.Microsecond, types.PeriodUnitMillisecond: time.Millisecond, types.PeriodUnitSecond: time.Second,
	types.PeriodUnitMinute: time.Minute, types.PeriodUnitHour: time.Hour, types.PeriodUnitDay: 24 * time.Hour, types.PeriodUnitWeek: 7 * 24 * time.Hour,
}

// toldQuotaName returns the name of the bucket that a quota of Service Quotas is
// for; "": none.
func toldQuotaName(q types.ServiceQuota) string {
	if name := quotaCodes[aws.ToString(q.QuotaCode)]; name != "" {
		return name
	}
	operation, ok := strings.CutSuffix(aws.ToString(q.QuotaName), " request rate")
	if name := ServiceKMS + ":" + operation; ok && requestQuotas[name] > 0 {
		return name
	}
	return ""
}

// toldQuota returns a quota in requests per second, and whether it can be one.
func toldQuota(q types.ServiceQuota) (perSecond float64, ok bool) {
	if q.Value == nil || q.ErrorReason != nil {
		return 0, false
	}
	perSecond = *q.Value
	if p := q.Period; p != nil {
		period := quotaPeriods[p.PeriodUnit] * time.Duration(aws.ToInt32(p.PeriodValue))
		if period <= 0 {
			return 0, false
		}
		perSecond /= period.Seconds()
	}
	return perSecond, perSecond >= leastQuota && perSecond <= mostQuota
}

// ServiceQuotas asks Service Quotas for the request quotas of KMS that are in
// force for the account and Region, in requests per second, by names as
// [QuotaUse] has them in Action. What Service Quotas does not tell, or with a
// value that can be none, is left out; an answer without any is an error.
func (k *KMS) ServiceQuotas(ctx context.Context) (map[string]float64, error) {
	r := request{service: ServiceQuotas, operation: "ListServiceQuotas"}
	client, err := k.serviceQuotas()
	if err != nil {
		return nil, err
	}
	quotas := make(map[string]float64)
	in := &servicequotas.ListServiceQuotasInput{ServiceCode: aws.String(ServiceKMS), MaxResults: aws.Int32(100)}
	for range quotaPages {
		out, err := send(ctx, k.session, r, func(ctx context.Context) (*servicequotas.ListServiceQuotasOutput, error) {
			return client.ListServiceQuotas(ctx, in)
		})
		if err != nil {
			return nil, err
		}
		for _, q := range out.Quotas {
			if perSecond, ok := toldQuota(q); ok {
				if name := toldQuotaName(q); name != "" {
					quotas[name] = perSecond
				}
			}
		}
		if in.NextToken = out.NextToken; aws.ToString(in.NextToken) == "" {
			break
		}
	}
	if len(quotas) == 0 {
		return nil, &Error{Operation: r.action(), Region: k.region, class: Transient, err: errors.New("no quotas"),
			detail: "the answer has none of KMS's request quotas, or no value that can be one"}
	}
	return quotas, nil
}

// serviceQuotas returns the session's client of Service Quotas, made when first
// wanted: it is off by default.
func (s *session) serviceQuotas() (*servicequotas.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quotas != nil {
		return s.quotas, nil
	}
	url, err := s.cloud.endpoint(ServiceQuotas, s.region)
	if err != nil {
		return nil, err
	}
	s.cloud.mu.Lock()
	transport := s.cloud.transport
	s.cloud.mu.Unlock()
	s.quotas = servicequotas.New(servicequotas.Options{
		AppID: appID, Region: s.region, BaseEndpoint: &url, Credentials: s.identity.provider,
		HTTPClient: newHTTPClient(transport), Retryer: newRetryer(), APIOptions: s.middleware(ServiceQuotas, s.identity),
		HTTPSignerV4: new(signer),
	})
	return s.quotas, nil
}

// An accountRegion is where AWS counts requests against quotas.
type accountRegion struct{ account, region string }

// A quotaWatch is what Service Quotas tells of one account and Region. Cloud.mu
// guards it.
type quotaWatch struct {
	quotas map[string]float64 // of the latest good answer, by bucketKey.name; nil: there was none
	tried  bool               // it was asked, whatever came of it
	asking bool               // a request is on its way
	next   time.Time          // when it is asked again
	delay  time.Duration      // between tries while it does not tell; 0: it does
}

// quotaInForce returns the quota that a bucket is to be kept to, and where it
// comes from. It is called with mu held.
func (c *Cloud) quotaInForce(at accountRegion, name string) (perSecond float64, source string) {
	if set := c.settings.Quotas[strings.TrimPrefix(name, ServiceKMS+":")]; set > 0 {
		return set, QuotaConfigured
	}
	if w := c.watches[at]; w != nil && w.quotas[name] > 0 {
		return w.quotas[name], QuotaTold
	}
	return defaultQuota(name, at.region), QuotaDefault
}

// followQuotas has Service Quotas asked about an account and Region if its answer
// is missing or old; nobody waits for it. It is called with mu held.
func (c *Cloud) followQuotas(s *session, at accountRegion) {
	if !c.settings.FromServiceQuotas || c.ctx.Err() != nil || at.account == "" {
		return // whose quotas they would be is not known while the account is not
	}
	w := c.watches[at]
	if w == nil {
		w = new(quotaWatch)
		c.watches[at] = w
	}
	if w.asking || time.Now().Before(w.next) {
		return
	}
	w.asking = true
	c.background.Go(func() {
		quotas, err := s.kms.ServiceQuotas(c.ctx)
		if c.toldQuotas(at, w, quotas, err) && c.settings.QuotasTold != nil {
			c.settings.QuotasTold()
		}
	})
}

// toldQuotas takes an answer of Service Quotas, and reports whether there is
// something new in it.
func (c *Cloud) toldQuotas(at accountRegion, w *quotaWatch, quotas map[string]float64, err error) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.asking = false
	if c.ctx.Err() != nil {
		return false
	}
	changed, w.tried = !w.tried, true
	if err != nil {
		if w.delay == 0 {
			c.log.Warn("Service Quotas does not tell KMS's request quotas: byokd goes on with those that it has, and will ask again",
				"account", at.account, "region", at.region, "err", err)
		}
		w.delay = min(max(2*w.delay, firstQuotaRetry), quotasLifetime)
		w.next = time.Now().Add(w.delay)
		return changed
	}
	before := make(map[string]float64)
	for name := range requestQuotas {
		before[name], _ = c.quotaInForce(at, name)
	}
	w.quotas, w.delay, w.next = quotas, 0, time.Now().Add(quotasLifetime)
	var differences []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if now, _ := c.quotaInForce(at, name); now != before[name] {
			differences = append(differences, fmt.Sprintf("%s %g (was %g)", name, now, before[name]))
		}
	}
	for key, b := range c.buckets {
		if key.account == at.account && key.region == at.region {
			b.setQuota(c.quotaInForce(at, key.name))
		}
	}
	if len(differences) == 0 {
		return changed
	}
	c.log.Info("Service Quotas tells other request quotas: byokd keeps to them",
		"account", at.account, "region", at.region, "per_second", strings.Join(differences, ", "))
	return true
}

// learnedAccount takes note of the account behind a session. What Service Quotas
// has told of it before counts for the session's credential from now on.
func (c *Cloud) learnedAccount(s *session, account string) {
	c.mu.Lock()
	key := sessionKey{s.name, s.region}
	if c.sessions[key] != s || c.accounts[key] == account {
		c.mu.Unlock()
		return // of a credential that is replaced, or nothing new
	}
	c.accounts[key] = account
	w := c.watches[accountRegion{account, s.region}]
	told := w != nil && w.tried
	c.mu.Unlock()
	if told && c.settings.QuotasTold != nil {
		c.settings.QuotasTold()
	}
}

// ImportQuota returns the quota of GetParametersForImport that is in force for the
// account and Region of a credential, in requests per second, whatever AWS has
// throttled; 0 while Service Quotas is still to be asked. After
// [Cloud.SetCredentials] the account is the one before until it is learned anew.
// It does no I/O.
func (c *Cloud) ImportQuota(credential, region string) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := accountRegion{c.accounts[sessionKey{credential, region}], region}
	perSecond, source := c.quotaInForce(at, ImportAction)
	if w := c.watches[at]; source == QuotaDefault && c.settings.FromServiceQuotas && (w == nil || !w.tried) {
		return 0
	}
	return perSecond
}
