package daemon_test

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/miekg/pkcs11"

	"byokd/daemon/control"
	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// rotationRounds is how often every group of a benchmark is rotated.
const rotationRounds = 2

// A simProcess is an awssim in a process of its own, so that what it costs can be
// told from what byokd does.
type simProcess struct {
	url string
	pid int
}

// startSim starts an awssim without quotas, with one pair of RSA-4096 wrapping keys.
func startSim(tb testing.TB) *simProcess {
	tb.Helper()
	program := filepath.Join(tb.TempDir(), "awssim")
	if out, err := exec.Command("go", "build", "-o", program, "byokd/cmd/awssim").CombinedOutput(); err != nil {
		tb.Fatalf("build awssim: %v: %s", err, out)
	}
	cmd := exec.Command(program, "--listen", "127.0.0.1:0", "--wrapping-pairs", "1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return &simProcess{strings.TrimSpace(strings.TrimPrefix(line, "awssim: listening on ")), cmd.Process.Pid}
}

// cpu is the processor time that awssim has used, in steps of a hundredth of a second.
func (s *simProcess) cpu(tb testing.TB) time.Duration {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		tb.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int
	for _, f := range fields[11:13] { // utime and stime; proc(5)
		n, err := strconv.Atoi(f)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

// ownCPU is the processor time that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// timedLibrary counts the time of calls into a PKCS#11 module, and what of it was
// processor time of the calling thread.
type timedLibrary struct {
	hsm.Library
	calls, wall, cpu atomic.Int64
}

func timed[T any](l *timedLibrary, call func() (T, error)) (T, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begun, used := time.Now(), threadCPU()
	v, err := call()
	l.calls.Add(1)
	l.wall.Add(int64(time.Since(begun)))
	l.cpu.Add(int64(threadCPU() - used))
	return v, err
}

// threadCPU is the processor time of the calling thread.
func threadCPU() time.Duration {
	const clockThreadCPUTimeID = 3 // linux/time.h
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPUTimeID, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}

func (l *timedLibrary) OpenSession(slot, flags uint) (pkcs11.SessionHandle, error) {
	return timed(l, func() (pkcs11.SessionHandle, error) { return l.Library.OpenSession(slot, flags) })
}

func (l *timedLibrary) CloseSession(s pkcs11.SessionHandle) error {
	_, err := timed(l, func() (struct{}, error) { return struct{}{}, l.Library.CloseSession(s) })
	return err
}

func (l *timedLibrary) GenerateKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return timed(l, func() (pkcs11.ObjectHandle, error) { return l.Library.GenerateKey(s, m, t) })
}

func (l *timedLibrary) CreateObject(s pkcs11.SessionHandle, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return timed(l, func() (pkcs11.ObjectHandle, error) { return l.Library.CreateObject(s, t) })
}

func (l *timedLibrary) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	_, err := timed(l, func() (struct{}, error) { return struct{}{}, l.Library.DestroyObject(s, o) })
	return err
}

func (l *timedLibrary) GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	return timed(l, func() ([]*pkcs11.Attribute, error) { return l.Library.GetAttributeValue(s, o, a) })
}

func (l *timedLibrary) WrapKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, wrapping, key pkcs11.ObjectHandle) ([]byte, error) {
	return timed(l, func() ([]byte, error) { return l.Library.WrapKey(s, m, wrapping, key) })
}

// tokenAlone makes and wraps so many keys on a token, one after the other as byokd
// does with max_parallel = 1, in one session and with nothing else, and returns
// how long one takes. Nothing may have the module in use.
func tokenAlone(tb testing.TB, tok *hsmtest.Token, n int) time.Duration {
	tb.Helper()
	lib := pkcs11.New(tok.Module)
	defer lib.Destroy()
	check := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	check(lib.Initialize())
	defer lib.Finalize()
	slots, err := lib.GetSlotList(true)
	check(err)
	var session pkcs11.SessionHandle
	for _, slot := range slots {
		if ti, err := lib.GetTokenInfo(slot); err == nil && strings.TrimRight(ti.Label, " \x00") == tok.Label {
			session, err = lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			check(err)
		}
	}
	check(lib.Login(session, pkcs11.CKU_USER, tok.PIN))
	public := wrappingKey()
	oaep := pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil)
	begun := time.Now()
	for i := range n {
		id := make([]byte, 16)
		rand.Read(id)
		key, err := lib.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
			pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, fmt.Sprintf("alone/%d", i)), pkcs11.NewAttribute(pkcs11.CKA_ID, id)})
		check(err)
		wrapping, err := lib.CreateObject(session, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, public.N.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(public.E)).Bytes())})
		check(err)
		_, err = lib.WrapKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, oaep)}, wrapping, key)
		check(err)
		check(lib.DestroyObject(session, wrapping))
	}
	return time.Since(begun) / time.Duration(n)
}

// wrappingKey is an RSA-4096 key like KMS's.
var wrappingKey = sync.OnceValue(func() *rsa.PublicKey {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		panic(err)
	}
	return &key.PublicKey
})

// metric is the sum of a counter's samples in what Prometheus sees.
func metric(tb testing.TB, scraped, name string) float64 {
	tb.Helper()
	sum := 0.0
	for _, line := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(scraped, -1) {
		v, err := strconv.ParseFloat(line[1], 64)
		if err != nil {
			tb.Fatal(err)
		}
		sum += v
	}
	return sum
}

// rotateAll asks for a rotation of every group and waits until all are done, without
// costing byokd much: a client that follows a job has it read at every change.
func (w *world) rotateAll(groups []string) {
	w.t.Helper()
	if _, err := w.client.Rotate(w.t.Context(), groups, false); err != nil {
		w.t.Fatal(err)
	}
	for {
		open, err := w.client.Jobs(w.t.Context(), control.JobFilter{State: control.JobOpen, Limit: 1})
		if err != nil {
			w.t.Fatal(err)
		}
		if len(open) == 0 {
			return
		}
		if open[0].Error != "" {
			w.t.Fatalf("%s: %s", open[0].Group, open[0].Error)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// BenchmarkRotations rotates the groups of one account and Region with AWS's quotas
// lifted, and says how near that comes to what the token alone does, and what byokd
// itself adds.
func BenchmarkRotations(b *testing.B) {
	const count = 100
	sim := startSim(b)
	w := newWorld(b)
	w.level = 0 // info, byokd's default
	text, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		b.Fatal(err)
	}
	text = []byte(strings.ReplaceAll(string(text), w.aws.URL, sim.url))
	w.write("byokd.toml", string(text)+"[metrics]\nlisten = \""+freeAddress(b)+"\"\n")
	var library *timedLibrary
	w.hsm = []hsm.Option{hsm.WithLibrary(func(l hsm.Library) hsm.Library {
		library = &timedLibrary{Library: l}
		return library
	})}
	var groups []string
	for i := range count {
		groups = append(groups, fmt.Sprintf("group-%03d", i))
		w.group(groups[i], every, "")
	}
	alone := tokenAlone(b, w.token, count)

	w.start()
	for _, g := range groups {
		w.untilGeneration(g, 1)
	}
	w.until("the first events are sent", func() bool { return w.pending() == 0 })
	runtime.GC()
	profile := w.profile()
	before := w.scrape()
	calls, inHSM, hsmCPU := library.calls.Load(), library.wall.Load(), library.cpu.Load()
	own, aws, begun := ownCPU(), sim.cpu(b), time.Now()
	for range rotationRounds {
		w.rotateAll(groups)
	}
	elapsed := time.Since(begun)
	ownUsed, awsUsed := ownCPU()-own, sim.cpu(b)-aws
	calls, inHSM, hsmCPU = library.calls.Load()-calls, library.wall.Load()-inHSM, library.cpu.Load()-hsmCPU
	profile()
	w.until("the events are sent", func() bool { return w.pending() == 0 })
	after := w.scrape()
	request := w.costOfRequest(sim)
	if err := w.halt(); err != nil {
		b.Fatal(err)
	}
	alone = (alone + tokenAlone(b, w.token, count)) / 2

	n := time.Duration(count * rotationRounds)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	each := elapsed / n
	requests := (metric(b, after, "byokd_aws_requests_total") - metric(b, before, "byokd_aws_requests_total")) / float64(n)
	commits := (metric(b, after, "byokd_database_commits_total") - metric(b, before, "byokd_database_commits_total")) / float64(n)
	fmt.Printf("bench: quotas lifted, %d rotations, one SoftHSM token: %.1f a second, the token alone does %.1f in generate + wrap (%.0f %% of it, to reach: 80 %%); "+
		"the module was busy %.0f %% of the time; CPU of a rotation: byokd %.1f ms, of it in the module %.1f ms; awssim %.1f ms\n",
		n, float64(time.Second)/float64(each), float64(time.Second)/float64(alone), 100*float64(alone)/float64(each),
		100*float64(inHSM)/float64(elapsed), ms(ownUsed/n), ms(time.Duration(hsmCPU)/n), ms(awsUsed/n))
	awsCPU := time.Duration(requests * float64(request))
	rest := ownUsed/n - time.Duration(hsmCPU)/n
	fmt.Printf("bench: our own overhead in a rotation: %.2f ms of CPU without HSM and AWS (to reach: under 5 ms), %.2f ms with the client's side of %.1f requests to AWS at %.2f ms each; "+
		"%.1f commits (to reach: under 20), %.1f calls into the module\n",
		ms(rest-awsCPU), ms(rest), requests, ms(request), commits, float64(calls)/float64(n))
}

// costOfRequest is the processor time that the client's side of one request takes:
// the SDK, its signature, HTTP.
func (w *world) costOfRequest(sim *simProcess) time.Duration {
	w.t.Helper()
	client := kms.New(kms.Options{Region: testRegion, BaseEndpoint: &sim.url, Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, "")})
	id := "alias/group-000"
	ask := func(n int) {
		for range n {
			if _, err := client.DescribeKey(w.t.Context(), &kms.DescribeKeyInput{KeyId: &id}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	ask(50)
	const n = 500
	used := ownCPU()
	ask(n)
	return (ownCPU() - used) / n
}

// profile begins a CPU profile in the file that BYOKD_BENCH_PROFILE names, if it
// does, and returns what ends it.
func (w *world) profile() (end func()) {
	w.t.Helper()
	path := os.Getenv("BYOKD_BENCH_PROFILE")
	if path == "" {
		return func() {}
	}
	f, err := os.Create(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}
}
