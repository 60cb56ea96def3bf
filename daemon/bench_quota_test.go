package daemon_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
)

// A tally counts what AWS answers.
type tally struct {
	mu     sync.Mutex
	counts map[string]int // requests by operation
	codes  map[string]int // errors by operation and code
}

func (c *tally) note(r awssim.Request) *awssim.Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[r.Operation]++
	if r.Code != "" {
		c.codes[r.Operation+" "+r.Code]++
	}
	return nil
}

// taken returns the counts, and begins anew.
func (c *tally) taken() (counts, codes map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts, codes = c.counts, c.codes
	c.counts, c.codes = make(map[string]int), make(map[string]int)
	return counts, codes
}

// A throttling counts the requests that were throttled, by operation.
type throttling map[string]int

func throttled(codes map[string]int) throttling {
	t := make(throttling)
	for what, count := range codes {
		if operation, ok := strings.CutSuffix(what, " ThrottlingException"); ok {
			t[operation] += count
		}
	}
	return t
}

// String is how many there are, and of what: "0", "5 (CreateKey 4, CreateAlias 1)".
func (t throttling) String() string {
	var of []string
	for _, operation := range slices.Sorted(maps.Keys(t)) {
		of = append(of, fmt.Sprintf("%s %d", operation, t[operation]))
	}
	if len(of) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", sum(t), strings.Join(of, ", "))
}

// newQuotaWorld makes a world with groups in some Regions, each with its first
// generation, and an AWS and a byokd that keep to quotas from now on; nil: AWS's
// default ones. AWS's bucket of GetParametersForImport holds one request, the
// strictest reading of "one a second", and the others what they allow in a second.
func newQuotaWorld(t testing.TB, regions, perRegion int, quotas map[string]float64, lines string) (*world, *tally) {
	t.Helper()
	w := newWorld(t)
	for r := range regions {
		for i := range perRegion {
			w.write(fmt.Sprintf("groups.d/r%02d-g%03d.toml", r, i), fmt.Sprintf("[rotation]\nevery = \"90d\"\n[aws]\nregion = %q\nalias = \"alias/g%03d\"\n", regionNames[r], i))
		}
	}
	w.start()
	w.untilAll(regions*perRegion, 1)
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.quotas = lines
	w.configure("")
	w.sim.SetQuotas(&awssim.Quotas{PerSecond: quotas})
	c := &tally{}
	c.taken()
	w.start()
	w.until("byokd knows all groups", func() bool {
		all, err := w.client.Status(context.Background())
		return err == nil && len(all) == regions*perRegion
	})
	w.faults(nil, c.note)
	return w, c
}

var regionNames = []string{"af-south-1", "ap-east-1", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2", "ap-southeast-1",
	"ap-southeast-2", "ap-southeast-3", "ca-central-1", "eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-west-1", "eu-west-2", "sa-east-1", "us-east-1", "us-west-2"}

// untilAll waits until that many groups have an active generation of a number, and
// no job is open.
func (w *world) untilAll(groups, generation int) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not all of %d groups came to generation %d", groups, generation)
		}
		open, err := w.client.Jobs(context.Background(), control.JobFilter{State: control.JobOpen})
		if err != nil || len(open) > 0 {
			continue
		}
		all, err := w.client.Status(context.Background())
		if err != nil {
			w.t.Fatal(err)
		}
		ready := 0
		for _, s := range all {
			if s.Active.Generation != nil && *s.Active.Generation == generation {
				ready++
			}
		}
		if ready == groups {
			return
		}
	}
}

// rotatedAll asks for a rotation of all groups and returns how long it takes, from
// the asking to the end of the last job.
func (w *world) rotatedAll(groups, generation int) time.Duration {
	w.t.Helper()
	begun := time.Now()
	if _, err := w.client.Rotate(context.Background(), nil, true); err != nil {
		w.t.Fatal(err)
	}
	w.untilAll(groups, generation)
	jobs, err := w.client.Jobs(context.Background(), control.JobFilter{})
	if err != nil {
		w.t.Fatal(err)
	}
	ended := begun
	for _, j := range jobs {
		if j.FinishedAt.After(ended) {
			ended = j.FinishedAt.Time
		}
	}
	return ended.Sub(begun)
}

// target says how far a time is from the ideal one, and how far it may be.
func target(took, ideal time.Duration, percent float64) string {
	over := 100 * (took.Seconds()/ideal.Seconds() - 1)
	return fmt.Sprintf("%.1f s, ideal %.0f s (%+.1f %%, to reach: %g %%)", took.Seconds(), ideal.Seconds(), over, percent)
}

func BenchmarkQuotaOnePlace(b *testing.B) {
	const groups = 300
	w, c := newQuotaWorld(b, 1, groups, nil, "")
	took := w.rotatedAll(groups, 2)
	counts, codes := c.taken()
	fmt.Printf("bench: %d groups, 1 account and Region, default quotas: %s, %v of %d requests throttled; 1 pair of wrapping keys\n",
		groups, target(took, groups*time.Second, 2), throttled(codes), sum(counts))
}

func BenchmarkQuotaManyPlaces(b *testing.B) {
	const regions, groups = 20, 20
	w, c := newQuotaWorld(b, regions, groups, nil, "")
	took := w.rotatedAll(regions*groups, 2)
	counts, codes := c.taken()
	fmt.Printf("bench: %d Regions × %d groups, default quotas: %s, %v of %d requests throttled; 1 pair of wrapping keys\n",
		regions, groups, target(took, groups*time.Second, 5), throttled(codes), sum(counts))
}

// BenchmarkQuotaAhead rotates groups in place that are due at one time, with the import
// parameters fetched ahead and without.
func BenchmarkQuotaAhead(b *testing.B) {
	const groups = 60
	w, c, wave := newWaveWorld(b, groups, 0, "")
	rotated := func(at time.Time, generation int) time.Duration {
		begun := time.Now()
		w.moved(at)
		w.untilAll(groups, generation)
		return time.Since(begun)
	}
	c.taken()
	w.moved(wave.Add(-20 * time.Minute))
	w.untilWithin(2*groups*time.Second, "import parameters are fetched ahead", func() bool { return w.log.contains("fetched ahead of a wave") })
	counts, _ := c.taken()
	ahead := counts["GetParametersForImport"]
	with := rotated(wave.Add(time.Second), 2)
	counts, codes := c.taken()
	without := rotated(wave.Add(24*time.Hour+time.Second), 3)
	fmt.Printf("bench: a wave of %d rotations in place, default quotas, %d import parameters fetched ahead: %.1f s, %v of %d requests throttled; none fetched ahead: %.1f s (%.2f times the time)\n",
		groups, ahead, with.Seconds(), throttled(codes), sum(counts), without.Seconds(), without.Seconds()/with.Seconds())
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// BenchmarkQuotaAgainstSDK rotates the same number of keys with byokd, and with a
// program that sends the same requests and leaves the quotas to the SDK's adaptive
// retries.
func BenchmarkQuotaAgainstSDK(b *testing.B) {
	const groups = 60
	w, c := newQuotaWorld(b, 1, groups, nil, "")
	ours := w.rotatedAll(groups, 2)
	counts, codes := c.taken()
	ourRequests, ourThrottled := sum(counts), throttled(codes)
	if err := w.halt(); err != nil {
		b.Fatal(err)
	}

	w.sim.SetQuotas(&awssim.Quotas{})
	plain := w.plainClient()
	begun := time.Now()
	var group sync.WaitGroup
	for i := range groups {
		group.Go(func() {
			if err := rotatePlainly(context.Background(), plain, fmt.Sprintf("alias/g%03d", i)); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
	theirs := time.Since(begun)
	counts, codes = c.taken()
	fmt.Printf("bench: %d rotations at default quotas, byokd: %.1f s, %v of %d requests throttled; plain SDK with adaptive retries: %.1f s, %v of %d requests throttled (%.2f times the time, throttled: %s)\n",
		groups, ours.Seconds(), ourThrottled, ourRequests, theirs.Seconds(), throttled(codes), sum(counts), theirs.Seconds()/ours.Seconds(), ratio(sum(throttled(codes)), sum(ourThrottled)))
}

func ratio(a, b int) string {
	if b == 0 {
		return fmt.Sprintf("%d to 0", a)
	}
	return fmt.Sprintf("%.0f times as many", float64(a)/float64(b))
}

// plainClient is a client as most programs have it, with adaptive retries that do
// not give up.
func (w *world) plainClient() *kms.Client {
	return kms.New(kms.Options{Region: regionNames[0], BaseEndpoint: aws.String(w.aws.URL),
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		Retryer: retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) {
			o.StandardOptions = append(o.StandardOptions, func(o *retry.StandardOptions) { o.MaxAttempts = math.MaxInt32 })
		})})
}

// rotatePlainly sends the requests of a rotation. Where the SDK gives up, the
// request is made again.
func rotatePlainly(ctx context.Context, client *kms.Client, alias string) error {
	created, err := insist(func() (*kms.CreateKeyOutput, error) {
		return client.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal,
			Tags: []types.Tag{{TagKey: aws.String("byokd:group"), TagValue: aws.String(strings.TrimPrefix(alias, "alias/"))}}})
	})
	if err != nil {
		return err
	}
	key := created.KeyMetadata.KeyId
	p, err := insist(func() (*kms.GetParametersForImportOutput, error) {
		return client.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: key, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa4096})
	})
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(p.PublicKey)
	if err != nil {
		return err
	}
	material := make([]byte, 32)
	rand.Read(material)
	wrapped, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
	if err != nil {
		return err
	}
	if _, err := insist(func() (*kms.ImportKeyMaterialOutput, error) {
		return client.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{KeyId: key, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapped,
			ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire})
	}); err != nil {
		return err
	}
	sealed, err := insist(func() (*kms.EncryptOutput, error) {
		return client.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: material})
	})
	if err != nil {
		return err
	}
	if _, err := insist(func() (*kms.DecryptOutput, error) {
		return client.Decrypt(ctx, &kms.DecryptInput{KeyId: key, CiphertextBlob: sealed.CiphertextBlob})
	}); err != nil {
		return err
	}
	if _, err := insist(func() (*kms.UpdateAliasOutput, error) {
		return client.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &alias, TargetKeyId: key})
	}); err != nil {
		return err
	}
	return nil
}

// insist calls until it goes well, a hundred times at most.
func insist[Out any](call func() (*Out, error)) (out *Out, err error) {
	for range 100 {
		if out, err = call(); err == nil {
			return out, nil
		}
	}
	return nil, err
}

// What a rotation costs at AWS, and that byokd keeps to the quotas: the same as the
// benchmarks at a small size, with quotas ten times AWS's.
func TestRotationsAtQuota(t *testing.T) {
	for name, test := range map[string]struct{ regions, groups int }{"one Region": {1, 24}, "three Regions": {3, 8}} {
		t.Run(name, func(t *testing.T) {
			w, c := newQuotaWorld(t, test.regions, test.groups,
				map[string]float64{"kms:GetParametersForImport": 10, "kms:CreateKey": 50, "kms:UpdateAlias": 50, "tag:GetResources": 150},
				"get_parameters_for_import = 10\ncreate_key = 50\nupdate_alias = 50\n")
			groups := test.regions * test.groups
			w.rotatedAll(groups, 2)
			counts, codes := c.taken()
			if len(codes) > 0 {
				t.Errorf("AWS refused requests: %v", codes)
			}
			for _, operation := range []string{"CreateKey", "GetParametersForImport", "ImportKeyMaterial", "UpdateAlias", "Encrypt", "Decrypt", "ListGrants", "PutEvents"} {
				want := groups
				switch operation {
				case "PutEvents": // several events in one
					if counts[operation] > want {
						t.Errorf("%d of %s, want %d at most", counts[operation], operation, want)
					}
					continue
				case "Encrypt", "Decrypt":
					want = counts["Encrypt"] // once or, with a look through the alias, twice
					if want != groups && want != 2*groups {
						t.Errorf("%d of %s for %d rotations", want, operation, groups)
					}
				}
				if counts[operation] != want {
					t.Errorf("%d of %s, want %d", counts[operation], operation, want)
				}
			}
			t.Logf("%d rotations: %v", groups, sorted(counts))
		})
	}
}

func sorted(counts map[string]int) (list []string) {
	for _, operation := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, fmt.Sprintf("%d %s", counts[operation], operation))
	}
	return list
}
