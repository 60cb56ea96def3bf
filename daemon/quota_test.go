package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"byokd/cloud"
	"byokd/cloud/awssim"
	"byokd/config"
	"byokd/daemon/control"
)

// The keys of [aws.quotas] and their defaults are those that the client of AWS
// keeps. Quotas of more than 100 a second have none: byokd cannot reach them.
func TestQuotaDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, config.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]float64)
	for key, perSecond := range cfg.AWS.Quotas.Keys() {
		have[key] = *perSecond
	}
	want := make(map[string]float64)
	for operation, perSecond := range cloud.DefaultQuotas() {
		var key strings.Builder
		for i, r := range operation {
			if unicode.IsUpper(r) && i > 0 {
				key.WriteByte('_')
			}
			key.WriteRune(unicode.ToLower(r))
		}
		if perSecond <= 100 {
			want[key.String()] = perSecond
		}
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("of the client (-), of byokd.toml (+):\n%s", d)
	}
}

// The scarce request is never idle while work waits: a job that has got its import
// parameters makes room for the next, however long it goes on.
func TestRoomBehindImport(t *testing.T) {
	const groups = 40 // more than are ahead of their imports at once
	w := newWorld(t)
	var mu sync.Mutex
	asked := 0
	all, stop := make(chan struct{}), make(chan struct{}) // stop: the test has failed
	t.Cleanup(func() { close(stop) })
	w.faults(func(r awssim.Request) *awssim.Fault {
		mu.Lock()
		if r.Operation == "GetParametersForImport" {
			if asked++; asked == groups {
				close(all)
			}
		}
		mu.Unlock()
		if r.Operation == "ImportKeyMaterial" { // none is imported before all have their parameters
			select {
			case <-all:
			case <-stop:
			}
		}
		return nil
	}, nil)
	for i := range groups {
		w.group(fmt.Sprintf("g%02d", i), `every = "90d"`, "")
	}
	w.start()
	for i := range groups {
		w.untilGeneration(fmt.Sprintf("g%02d", i), 1)
	}
}

// Somebody else takes a half of the scarce quota, with no regard for anybody: byokd
// makes all its rotations, each once, and gets throttled now and then only.
func TestQuotaOfAnother(t *testing.T) {
	const groups, perSecond = 12, 4
	w, c := newQuotaWorld(t, 1, groups, map[string]float64{"kms:GetParametersForImport": perSecond}, fmt.Sprintf("get_parameters_for_import = %d.0", perSecond))
	client := w.kmsClient()
	there := func(o *kms.Options) { o.Region, o.RetryMaxAttempts = regionNames[0], 1 }
	key, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{Origin: types.OriginTypeExternal}, there)
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	var theirs, refused int // requests of the other one
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_, err := client.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: key.KeyMetadata.KeyId,
				WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa4096}, there)
			if err != nil {
				refused++
				time.Sleep(20 * time.Millisecond) // it insists
				continue
			}
			theirs++
			time.Sleep(2 * time.Second / perSecond)
		}
	})
	w.rotatedAll(groups, 2)
	leave()
	wg.Wait()
	counts, codes := c.taken()
	mine := counts["GetParametersForImport"] - theirs - refused
	throttled := codes["GetParametersForImport ThrottlingException"] - refused
	t.Logf("byokd sent %d, of which %d were throttled; the other one got %d", mine, throttled, theirs)
	if theirs == 0 || mine-throttled != groups {
		t.Errorf("byokd got import parameters %d times for %d rotations, the other one %d times", mine-throttled, groups, theirs)
	}
	if throttled > mine/2 {
		t.Errorf("%d of byokd's %d requests were throttled", throttled, mine)
	}
	if n := len(w.sim.Keys(testAccount, regionNames[0])); n != 2*groups+1 {
		t.Errorf("there are %d KMS keys, want %d", n, 2*groups+1)
	}
}

// With max_jobs the jobs are spread: no Region has all of them while another waits.
func TestSpreadOverPlaces(t *testing.T) {
	w := newWorld(t)
	w.configure("max_jobs = 4")
	var mu sync.Mutex
	var order []string
	asked := make(chan struct{})                         // all rotations are
	stop := make(chan struct{})                          // the test has failed
	together, waiting, next := 4, 0, make(chan struct{}) // so many go on at once, lest a quick one makes room for its own Region
	t.Cleanup(func() { close(stop) })
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation != "CreateKey" {
			return nil
		}
		<-asked
		mu.Lock()
		goOn := next
		if waiting++; waiting == together {
			close(next)
			waiting, next = 0, make(chan struct{})
		}
		mu.Unlock()
		select {
		case <-goOn:
		case <-stop:
		}
		return nil
	}, func(r awssim.Request) *awssim.Fault {
		mu.Lock()
		defer mu.Unlock()
		if r.Operation == "CreateKey" {
			order = append(order, r.Region)
		}
		return nil
	})
	regions := []string{"ap-south-1", "eu-central-1", "eu-west-1", "us-east-1"}
	w.start()
	for _, region := range regions {
		for i := range 6 {
			w.write(fmt.Sprintf("groups.d/%s-%d.toml", region, i), fmt.Sprintf("[rotation]\nevery = \"90d\"\ninitial = \"scheduled\"\n[aws]\nregion = %q\nalias = \"alias/g%d\"\n", region, i))
		}
	}
	w.until("all groups are known", func() bool {
		all, err := w.client.Status(t.Context())
		return err == nil && len(all) == 6*len(regions)
	})
	jobs, err := w.client.Rotate(t.Context(), nil, true)
	close(asked)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		if j := w.finished(j.ID); j.State != control.JobCompleted {
			t.Errorf("%s of %s: %s", j.State, j.Group, j.Error)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	count := make(map[string]int)
	for _, region := range order[:12] { // half of them
		count[region]++
	}
	for _, region := range regions {
		if count[region] < 2 {
			t.Errorf("of the first half, by Region: %v", count)
			break
		}
	}
}

// A schedule that cannot be met at the quotas is warned of when it is loaded, in
// the log, in status and by byokctl check; the group is taken all the same.
func TestOverloadIsTold(t *testing.T) {
	w := newWorld(t)
	w.quotas = "get_parameters_for_import = 0.001" // 86 a day
	w.configure("")
	for _, name := range []string{"orders", "payments"} {
		w.group(name, `every = "20m"
initial = "scheduled"`, "")
	}
	w.start()
	told := func() string {
		d, err := w.client.Daemon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range d.Problems {
			if p.Code == "quota" {
				return p.Message
			}
		}
		return ""
	}
	const want = "credential prod in eu-central-1: 2 groups ask for 144 rotations a day, and 0.001 imports a second allow 86"
	if got := told(); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "(groups orders, payments)") {
		t.Errorf("status tells %q", got)
	}
	if !w.log.contains("schedules cannot be met at AWS's quotas") {
		t.Error("the log does not tell")
	}
	if s := w.status("payments"); s.NextRotation.IsZero() {
		t.Errorf("payments is %+v", s)
	}
	w.group("payments", `every = "90d"
initial = "scheduled"`, "")
	w.until("the schedules can be met", func() bool { return told() == "" })
}

// With from_service_quotas byokd keeps to what Service Quotas tells, shows it, and
// reckons with it; a line of byokd.toml comes first.
func TestServiceQuotas(t *testing.T) {
	w := newWorldWith(t, func(o *awssim.Options) {
		o.Quotas = &awssim.Quotas{PerSecond: map[string]float64{"kms:GetParametersForImport": 40, "kms:CreateKey": 50}}
	})
	w.askServiceQuotas("create_key = 20")
	const groups = 12 // fewer than the simulator takes at once: none is throttled, however late it makes its wrapping keys
	for i := range groups {
		w.group(fmt.Sprintf("g%02d", i), `every = "20m"`, "")
	}
	w.start()
	w.untilAll(groups, 1)
	use := func() control.QuotaUse {
		d, err := w.client.Daemon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range d.Quotas.Used {
			if u.Operation == cloud.ImportAction {
				return u
			}
		}
		return control.QuotaUse{}
	}
	if u := use(); u.Quota != 40 || u.PerSecond != 40 || u.Source != cloud.QuotaTold || u.Throttled != 0 {
		t.Errorf("in use is %+v", u)
	}
	if n := w.requests("ListServiceQuotas"); n != 1 {
		t.Errorf("Service Quotas was asked %d times", n)
	}
	if plan, err := w.client.Plan(t.Context(), true, "g00"); err != nil || plan[0].QuotaPerSecond != 40 {
		t.Errorf("the plan reckons with %+v, %v", plan, err)
	}
	if log := w.log.String(); !strings.Contains(log, "kms:GetParametersForImport 40 (was 1)") || strings.Contains(log, "kms:CreateKey 50") {
		t.Error("the log does not tell what Service Quotas told, or more")
	}

	// Asked after the next start, it tells a quota that is too low for the schedules.
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.sim.SetQuotas(&awssim.Quotas{PerSecond: map[string]float64{"kms:GetParametersForImport": 0.01}})
	w.group("more", "every = \"20m\"\ninitial = \"scheduled\"", "")
	w.start()
	w.until("the schedules cannot be met", func() bool {
		return w.log.contains("13 groups ask for 936 rotations a day, and 0.01 imports a second allow 864")
	})
	if plan, err := w.client.Plan(t.Context(), true, "more"); err != nil || plan[0].QuotaPerSecond != 0.01 {
		t.Errorf("the plan reckons with %+v, %v", plan, err)
	}

	// Other credentials at SIGHUP leave the warning as it was.
	told := func() *control.Problem {
		d, err := w.client.Daemon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range d.Problems {
			if p.Code == "quota" {
				return &p
			}
		}
		return nil
	}
	before := told()
	w.write("byokd.toml", strings.Replace(w.read("byokd.toml"), "[credentials.prod]", "[credentials.prod]\naccount = \""+testAccount+"\"", 1))
	w.reload <- struct{}{}
	w.until("byokd is reloaded", func() bool { return w.log.contains("msg=reloaded") })
	if d := cmp.Diff(before, told()); before == nil || d != "" {
		t.Errorf("the warning before (-), after a reload (+):\n%s", d)
	}
	if n := strings.Count(w.log.String(), "schedules cannot be met at AWS's quotas"); n != 1 {
		t.Errorf("the log warns %d times", n)
	}
}

// Where Service Quotas is denied, jobs go on at AWS's defaults, and one line says so.
func TestServiceQuotasDenied(t *testing.T) {
	w := newWorld(t)
	w.askServiceQuotas("")
	w.deny(func(r awssim.Request) bool { return r.Service == "servicequotas" })
	for _, name := range []string{"orders", "payments"} {
		w.group(name, every, "")
	}
	w.start()
	w.untilGeneration("orders", 1)
	w.untilGeneration("payments", 1)
	d, err := w.client.Daemon(t.Context())
	if err != nil || len(d.Quotas.Used) != 1 || d.Quotas.Used[0].Quota != 1 || d.Quotas.Used[0].Source != cloud.QuotaDefault {
		t.Errorf("in use is %+v, %v", d.Quotas.Used, err)
	}
	if n := w.requests("ListServiceQuotas"); n != 1 {
		t.Errorf("Service Quotas was asked %d times", n)
	}
	lines := 0
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, "grant servicequotas:ListServiceQuotas to credential") {
			lines++
		}
	}
	if lines != 1 {
		t.Errorf("%d lines tell of the missing permission", lines)
	}
}
