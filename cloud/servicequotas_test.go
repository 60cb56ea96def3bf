package cloud_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"byokd/cloud"
	"byokd/cloud/awssim"
)

// A pipeListener hands out ends of net.Pipe, so that a server and its clients live
// in the time of a synctest bubble.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.close.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// A quotaWorld is a simulator and a client of it in one bubble.
type quotaWorld struct {
	*cloud.Cloud
	t    *testing.T
	sim  *awssim.Sim
	log  bytes.Buffer
	told atomic.Int64 // calls of QuotasTold
}

const noServiceQuotas = `{"Statement":{"Effect":"Allow","NotAction":"servicequotas:*","Resource":"*"}}`

func newQuotaWorld(t *testing.T, policy string, quotas map[string]float64, s cloud.Settings) *quotaWorld {
	w := &quotaWorld{t: t}
	w.sim = awssim.New(awssim.Options{
		Quotas: &awssim.Quotas{PerSecond: quotas},
		Credentials: []awssim.Credential{
			{AccessKeyID: csvID, SecretAccessKey: csvSecret, Account: account,
				ARN: "arn:aws:iam::" + account + ":user/byokd", Policy: json.RawMessage(policy)},
			{AccessKeyID: "AKIATHEIRS", SecretAccessKey: csvSecret, Account: "444455556666"},
		},
	})
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: w.sim}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	base := settingsFor("http://127.0.0.1:1")
	base.Credentials["other"] = base.Credentials["prod"]
	base.FromServiceQuotas, base.Quotas = s.FromServiceQuotas, s.Quotas
	base.Logger = slog.New(slog.NewTextHandler(&w.log, nil))
	base.QuotasTold = func() { w.told.Add(1) }
	w.Cloud = cloud.New(base)
	t.Cleanup(w.Close)
	err := w.Dial(func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		l.conns <- server
		return client, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// use sends a request to KMS, and waits until all that it caused has happened.
func (w *quotaWorld) use(credential, region string) {
	w.t.Helper()
	k, err := w.KMS(credential, region)
	if err == nil {
		_, err = k.Account(w.t.Context())
	}
	if err == nil {
		_, err = k.DescribeKey(w.t.Context(), keyID)
	}
	if !errors.Is(err, cloud.ErrNotFound) {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// asked is how often Service Quotas was.
func (w *quotaWorld) asked() (n int) {
	for _, r := range w.sim.Requests() {
		if r.Service == "servicequotas" {
			n++
		}
	}
	return n
}

// want compares what is kept to in a Region.
func (w *quotaWorld) want(credential, region string, perSecond float64, source string) {
	w.t.Helper()
	if rate, quota := w.ImportRate(credential, region), w.ImportQuota(credential, region); rate != perSecond || quota != perSecond {
		w.t.Errorf("byokd sends %v a second at a quota of %v, want %v", rate, quota, perSecond)
	}
	for _, u := range w.QuotaUses() {
		if u.Region == region && u.Action == cloud.ImportAction && (u.Account != account || u.Quota != perSecond || u.Source != source) {
			w.t.Errorf("in use is %+v, want %v from %s", u, perSecond, source)
		}
	}
}

// Service Quotas is asked once for each account and Region and day, whatever asks
// KMS, and the buckets keep to what it tells.
func TestServiceQuotasAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuotaWorld(t, "", map[string]float64{"kms:GetParametersForImport": 10, "kms:CreateKey": 2}, cloud.Settings{FromServiceQuotas: true})
		if q := w.ImportQuota("prod", region); q != 0 {
			t.Errorf("before it was asked, the quota is %v", q)
		}
		w.use("prod", region)
		w.use("other", region)
		w.want("prod", region, 10, cloud.QuotaTold)
		w.want("other", region, 10, cloud.QuotaTold)
		if n := w.asked(); n != 1 || w.told.Load() != 2 { // once for each credential
			t.Errorf("asked %d times, told of %d times", n, w.told.Load())
		}
		if log := w.log.String(); strings.Count(log, "\n") != 1 ||
			!strings.Contains(log, `per_second="kms:CreateKey 2 (was 5), kms:GetParametersForImport 10 (was 1)"`) {
			t.Errorf("the log says %s", log)
		}
		w.use("prod", "us-east-1")
		w.want("prod", "us-east-1", 10, cloud.QuotaTold)
		if n := w.asked(); n != 2 {
			t.Errorf("asked %d times about two Regions", n)
		}

		for range 23 {
			time.Sleep(time.Hour)
			w.use("prod", region)
		}
		if n := w.asked(); n != 2 {
			t.Errorf("asked %d times within a day", n)
		}
		w.sim.SetQuotas(&awssim.Quotas{PerSecond: map[string]float64{"kms:GetParametersForImport": 0.25}}) // and CreateKey 5 again
		time.Sleep(time.Hour)
		w.use("other", region)
		w.want("prod", region, 0.25, cloud.QuotaTold)
		if n := w.asked(); n != 3 || w.told.Load() != 4 {
			t.Errorf("asked %d times, told of %d times", n, w.told.Load())
		}
		w.SetCredentials(map[string]cloud.Credential{"prod": static()}) // as at SIGHUP
		if q := w.ImportQuota("prod", region); q != 0.25 {
			t.Errorf("after SetCredentials the quota is %v", q)
		}
		w.use("prod", region)
		w.want("prod", region, 0.25, cloud.QuotaTold)
		time.Sleep(cloud.QuotasLifetime)
		w.use("prod", region)
		if n := w.asked(); n != 4 || w.told.Load() != 4 {
			t.Errorf("nothing is new: asked %d times, told of %d times", n, w.told.Load())
		}
	})
}

// Whoever reckons with ImportQuota is told of each change of it, though Service
// Quotas need not be asked: when a credential turns out to be of an account that is
// known already, or of another one than before.
func TestServiceQuotasOfAnotherAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuotaWorld(t, "", map[string]float64{"kms:GetParametersForImport": 0.5}, cloud.Settings{FromServiceQuotas: true})
		theirs := cloud.Credential{Name: "theirs", AccessKeyCSV: func() ([]byte, error) {
			return []byte("Access key ID,Secret access key\nAKIATHEIRS," + csvSecret + "\n"), nil
		}}
		all := map[string]cloud.Credential{"prod": static(), "other": static(), "theirs": theirs}
		want := func(what string, prod, other, theirs float64, told int64) {
			t.Helper()
			got := []float64{w.ImportQuota("prod", region), w.ImportQuota("other", region), w.ImportQuota("theirs", region)}
			if d := cmp.Diff([]float64{prod, other, theirs}, got); d != "" || w.told.Load() != told {
				t.Errorf("%s: told %d times, want %d; expected (-), found (+):\n%s", what, w.told.Load(), told, d)
			}
		}
		w.SetCredentials(all)
		want("at first", 0, 0, 0, 0)
		w.use("prod", region)
		want("asked", 0.5, 0, 0, 1)
		w.use("other", region)
		want("of the same account", 0.5, 0.5, 0, 2)
		w.sim.SetQuotas(nil)
		w.use("theirs", region) // AWS's default there
		want("of another account", 0.5, 0.5, 1, 3)

		w.SetCredentials(all)
		want("set anew", 0.5, 0.5, 1, 3)
		for range 2 {
			w.use("prod", region)
			w.use("other", region)
			w.use("theirs", region)
		}
		want("set anew and used", 0.5, 0.5, 1, 3)

		w.SetCredentials(all)
		before, err := w.KMS("other", region)
		if err != nil {
			t.Fatal(err)
		}
		all["other"] = theirs
		w.SetCredentials(all)
		w.use("other", region)
		want("moved to the other account", 0.5, 1, 1, 4)
		if a, err := before.Account(t.Context()); err != nil || a != account {
			t.Errorf("the value given out before is of %s, %v", a, err)
		}
		want("asked for the account before", 0.5, 1, 1, 4)
		if n := w.asked(); n != 2 {
			t.Errorf("asked %d times about two accounts", n)
		}
	})
}

// What byokd.toml sets comes first; without the switch nobody is asked.
func TestServiceQuotasAreSecond(t *testing.T) {
	quotas := map[string]float64{"kms:GetParametersForImport": 10, "kms:CreateKey": 20}
	synctest.Test(t, func(t *testing.T) {
		w := newQuotaWorld(t, "", quotas, cloud.Settings{FromServiceQuotas: true, Quotas: map[string]float64{"GetParametersForImport": 3}})
		w.use("prod", region)
		w.want("prod", region, 3, cloud.QuotaConfigured)
		if log := w.log.String(); w.asked() != 1 || !strings.Contains(log, `per_second="kms:CreateKey 20 (was 5)"`) {
			t.Errorf("asked %d times: %s", w.asked(), log)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newQuotaWorld(t, "", quotas, cloud.Settings{})
		w.use("prod", region)
		w.want("prod", region, 1, cloud.QuotaDefault)
		if w.asked() != 0 || w.log.Len() != 0 {
			t.Errorf("asked %d times: %s", w.asked(), &w.log)
		}
	})
}

// Where it is not permitted, all goes on at the defaults, which is said once; it is
// asked again ever more seldom, and what it tells then counts.
func TestServiceQuotasAreDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuotaWorld(t, noServiceQuotas, map[string]float64{"kms:GetParametersForImport": 10}, cloud.Settings{FromServiceQuotas: true})
		for range 24 * 6 { // for a day
			w.use("prod", region)
			time.Sleep(10 * time.Minute)
		}
		w.want("prod", region, 1, cloud.QuotaDefault)
		if n := w.asked(); n != 8 { // after 0, 10, 30, 70, 150, 310, 630 and 1270 minutes
			t.Errorf("asked %d times in a day", n)
		}
		if log := w.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "level=WARN") ||
			!strings.Contains(log, `grant servicequotas:ListServiceQuotas to credential \"prod\"`) {
			t.Errorf("the log says %s", log)
		}
		if n := w.told.Load(); n != 1 {
			t.Errorf("told of %d times", n)
		}
		if err := w.sim.SetPolicy("arn:aws:iam::"+account+":user/byokd", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(cloud.QuotasLifetime)
		w.use("prod", region)
		w.want("prod", region, 10, cloud.QuotaTold)

		// What is known stays when it is denied again, and that is said again.
		if err := w.sim.SetPolicy("arn:aws:iam::"+account+":user/byokd", json.RawMessage(noServiceQuotas)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(cloud.QuotasLifetime)
		w.use("prod", region)
		w.want("prod", region, 10, cloud.QuotaTold)
		if n := strings.Count(w.log.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings in\n%s", n, &w.log)
		}
		before := w.asked()
		time.Sleep(cloud.FirstQuotaRetry)
		w.use("prod", region)
		if n := w.asked() - before; n != 1 {
			t.Errorf("asked again %d times", n)
		}
	})
}

// Nobody waits for Service Quotas, not even the end.
func TestServiceQuotasHang(t *testing.T) {
	asked, gone := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(awssim.New(awssim.Options{Before: func(r awssim.Request) *awssim.Fault {
		if r.Service == "servicequotas" {
			close(asked)
			<-gone
		}
		return nil
	}}))
	defer server.Close()
	defer close(gone)
	s := settingsFor(server.URL)
	s.FromServiceQuotas = true
	c := open(t, s)
	k, err := c.KMS("prod", region)
	if err == nil {
		_, err = k.Account(t.Context())
	}
	if err == nil {
		_, err = k.CreateKey(t.Context(), "", "", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	c.Close()
}

// Service Quotas of the simulator tells all that a bucket is kept of, but what
// AWS's list does not have.
func TestServiceQuotasTellsAll(t *testing.T) {
	server := httptest.NewServer(awssim.New(awssim.Options{}))
	defer server.Close()
	told, err := openKMS(t, settingsFor(server.URL)).ServiceQuotas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{"kms:cryptographic operations (symmetric)": 20_000}
	for operation, perSecond := range cloud.DefaultQuotas() {
		want["kms:"+operation] = perSecond
	}
	delete(want, "kms:GetKeyLastUsage")
	if d := cmp.Diff(want, told); d != "" {
		t.Errorf("expected (-), told (+):\n%s", d)
	}
}

// What cannot be a quota is none, and an answer without any is an error.
func TestServiceQuotasNonsense(t *testing.T) {
	const code, name = `"QuotaCode":"L-515A0541"`, `"QuotaName":"GetParametersForImport request rate"`
	for title, test := range map[string]struct {
		pages []string
		want  float64 // 0: an error
	}{
		"by code":          {[]string{`{"Quotas":[{` + code + `,"QuotaName":"renamed","Value":7}]}`}, 7},
		"by name":          {[]string{`{"Quotas":[{"QuotaCode":"L-0",` + name + `,"Value":7}]}`}, 7},
		"a second":         {[]string{`{"Quotas":[{` + code + `,"Value":7,"Period":{"PeriodValue":1,"PeriodUnit":"SECOND"}}]}`}, 7},
		"two minutes":      {[]string{`{"Quotas":[{` + code + `,"Value":60,"Period":{"PeriodValue":2,"PeriodUnit":"MINUTE"}}]}`}, 0.5},
		"on the next page": {[]string{`{"Quotas":[],"NextToken":"x"}`, `{"Quotas":[{` + code + `,"Value":7}]}`}, 7},
		"empty":            {[]string{`{}`}, 0},
		"no value":         {[]string{`{"Quotas":[{` + code + `}]}`}, 0},
		"zero":             {[]string{`{"Quotas":[{` + code + `,"Value":0}]}`}, 0},
		"negative":         {[]string{`{"Quotas":[{` + code + `,"Value":-1}]}`}, 0},
		"not a number":     {[]string{`{"Quotas":[{` + code + `,"Value":"NaN"}]}`}, 0},
		"far too many":     {[]string{`{"Quotas":[{` + code + `,"Value":1e300}]}`}, 0},
		"once a week":      {[]string{`{"Quotas":[{` + code + `,"Value":1,"Period":{"PeriodValue":1,"PeriodUnit":"WEEK"}}]}`}, 0},
		"unknown unit":     {[]string{`{"Quotas":[{` + code + `,"Value":1,"Period":{"PeriodValue":1,"PeriodUnit":"MOON"}}]}`}, 0},
		"no time":          {[]string{`{"Quotas":[{` + code + `,"Value":1,"Period":{"PeriodValue":0,"PeriodUnit":"SECOND"}}]}`}, 0},
		"AWS is not sure":  {[]string{`{"Quotas":[{` + code + `,"Value":1,"ErrorReason":{"ErrorCode":"SERVICE_QUOTA_NOT_AVAILABLE_ERROR"}}]}`}, 0},
		"something else":   {[]string{`{"Quotas":[{"QuotaCode":"L-340F62FB","QuotaName":"Aliases per CMK","Value":50}]}`}, 0},
		"without an end":   {[]string{`{"Quotas":[],"NextToken":"x"}`}, 0},
	} {
		t.Run(title, func(t *testing.T) {
			page := 0
			f := newFake(t, func(asked) answer {
				page++
				return answer{body: test.pages[min(page, len(test.pages))-1]}
			})
			told, err := openKMS(t, f.settings()).ServiceQuotas(t.Context())
			if test.want == 0 {
				if err == nil {
					t.Errorf("told %v", told)
				}
				return
			}
			if d := cmp.Diff(map[string]float64{cloud.ImportAction: test.want}, told); err != nil || d != "" {
				t.Errorf("%v, expected (-), told (+):\n%s", err, d)
			}
		})
	}
}

// A bucket takes another quota from its next turn on, and forgets nothing that it
// has learned from AWS.
func TestBucketOfAnotherQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near := func(b cloud.Bucket, want float64) {
			t.Helper()
			if got := b.Rate(); math.Abs(got-want) > want/100 {
				t.Errorf("%v a second, want %v", got, want)
			}
		}
		after := func(b cloud.Bucket, want time.Duration) {
			t.Helper()
			start := time.Now()
			take(t, b)
			if got := time.Since(start); got.Round(time.Millisecond) != want.Round(time.Millisecond) {
				t.Errorf("the next turn came after %v, want %v", got, want)
			}
		}
		b := cloud.NewBucket(1)
		b.SetQuota(10) // before its first turn
		after(b, 0)
		after(b, apart(10))
		b.SetQuota(0.5)
		after(b, apart(0.5))

		// One that queues is served at the new quota.
		done := make(chan time.Time)
		go func() { take(t, b); done <- time.Now() }()
		synctest.Wait()
		start := time.Now()
		b.SetQuota(4)
		if got := (<-done).Sub(start); got.Round(time.Millisecond) != apart(4).Round(time.Millisecond) {
			t.Errorf("who queued was served after %v", got)
		}

		// Throttled, it goes on where it was, however much the quota rises, and
		// grows to the new one.
		turn, _ := b.Wait(t.Context())
		b.Throttle(turn)
		near(b, 4*0.7)
		b.SetQuota(1000)
		near(b, 4*0.7)
		turn, _ = b.Wait(t.Context())
		b.Throttle(turn)
		near(b, 4*0.7*0.7)
		time.Sleep(cloud.Recovery)
		near(b, 4*0.7)
		time.Sleep(2 * time.Hour)
		near(b, 1000)

		// A lower quota counts at once.
		turn, _ = b.Wait(t.Context())
		b.Throttle(turn)
		near(b, 700)
		b.SetQuota(2)
		near(b, 2)
	})
}
