// Package conformance runs the operations that byokd uses, through package
// cloud, against an endpoint: byokd's simulator, another emulator, or AWS. It
// checks what byokd relies on, step by step, and cleans up after itself.
//
// A whole run makes four KMS keys and gives them up again: AWS charges for a
// key until its deletion is scheduled.
package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"byokd/cloud"
)

// A Target is what a run is against.
type Target struct {
	Settings   cloud.Settings
	Credential string // name of one of the Settings' credentials
	Region     string

	// Bus is an event bus that is there; empty: the endpoint has no
	// EventBridge, and its steps are not run.
	Bus string

	// Patience is how long a read may lag behind a write, and KMS behind a
	// ValidTo; 0 is 2 minutes.
	Patience time.Duration

	// NotRun are the steps that the endpoint cannot do, by name, with the
	// reason. Steps that need them are not run either.
	NotRun map[string]string

	// Deviations are the steps that the endpoint is known to fail, by name,
	// with the reason and who is right. One that passes is a failure: the list
	// is to be corrected.
	Deviations map[string]string
}

// An Outcome is how a step ended.
type Outcome string

// The outcomes of a step.
const (
	Passed   Outcome = "passed"
	Failed   Outcome = "failed"
	NotRun   Outcome = "not run"
	Deviates Outcome = "deviates"
)

// A Result is what became of a step.
type Result struct {
	Step    string
	Outcome Outcome
	Why     string // empty if it passed
}

// Steps returns the names of all steps, in order.
func Steps() []string {
	var names []string
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

// A step is one thing to check.
type step struct {
	name  string
	needs []string // steps that must have done their work
	run   func(*run, context.Context) error
}

// run is the state of a run.
type run struct {
	Target
	cloud *cloud.Cloud
	kms   *cloud.KMS
	id    string // tells this run's keys and alias from all others

	first, second, expiring, disabled cloud.Key // keys that were made
	material                          []byte    // of the first key
	materialID, secondID              string
	ciphertext                        []byte // under the first key
	made                              []string
}

// patience is how long things may take.
func (r *run) patience() time.Duration {
	if r.Patience > 0 {
		return r.Patience
	}
	return 2 * time.Minute
}

// Run runs all steps in order and reports each. Keys that were made are
// scheduled for deletion at the end; the error is about that, and about a
// target that cannot be used at all.
func Run(ctx context.Context, target Target, report func(Result)) error {
	c := cloud.New(target.Settings)
	defer c.Close()
	k, err := c.KMS(target.Credential, target.Region)
	if err != nil {
		return err
	}
	b := make([]byte, 6)
	rand.Read(b)
	r := &run{Target: target, cloud: c, kms: k, id: hex.EncodeToString(b)}
	done := make(map[string]bool)
	for _, s := range steps {
		result := r.step(ctx, s, done)
		// What a deviation leaves behind can still be worked with.
		done[s.name] = result.Outcome == Passed || result.Outcome == Deviates
		report(result)
	}
	return r.cleanUp(ctx)
}

func (r *run) step(ctx context.Context, s step, done map[string]bool) Result {
	result := Result{Step: s.name, Outcome: NotRun}
	if why, ok := r.NotRun[s.name]; ok {
		result.Why = why
		return result
	}
	for _, name := range s.needs {
		if !done[name] {
			result.Why = "it needs step " + name
			return result
		}
	}
	err := s.run(r, ctx)
	why, known := r.Deviations[s.name]
	switch {
	case err == nil && !known:
		result.Outcome = Passed
	case err == nil:
		result.Outcome, result.Why = Failed, "it passes, but is listed to deviate: "+why
	case errors.Is(err, errNoEvents):
		result.Why = err.Error()
	case known:
		result.Outcome, result.Why = Deviates, fmt.Sprintf("%s (%v)", why, err)
	default:
		result.Outcome, result.Why = Failed, err.Error()
	}
	return result
}

// cleanUp schedules the deletion of all keys, also when ctx has ended. Their
// aliases go with them.
func (r *run) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for _, id := range r.made {
		if _, err := r.kms.ScheduleDeletion(ctx, id, 7); err != nil && !errors.Is(err, cloud.ErrState) {
			errs = append(errs, fmt.Errorf("clean up: key %s is left behind: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// create makes a key that bears the run's tag.
func (r *run) create(ctx context.Context, description string) (cloud.Key, error) {
	key, err := r.kms.CreateKey(ctx, description, "", map[string]string{"byokd-conformance": r.id})
	if err != nil {
		return key, err
	}
	r.made = append(r.made, key.ID)
	return key, nil
}

// pause is between two looks at something that may come late.
const pause = 100 * time.Millisecond

// eventually looks until there is no error or patience ends.
func (r *run) eventually(ctx context.Context, look func() error) error {
	ctx, cancel := context.WithTimeout(ctx, r.patience())
	defer cancel()
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", r.patience(), err)
		case <-time.After(pause):
		}
	}
}

// reaches waits until a key, by ID or alias, is as it should be.
func (r *run) reaches(ctx context.Context, name string, good func(cloud.Key) bool) (key cloud.Key, err error) {
	err = r.eventually(ctx, func() (err error) {
		if key, err = r.kms.DescribeKey(ctx, name); err != nil {
			return err
		}
		if !good(key) {
			return fmt.Errorf("%s is key %s in state %s, material %q valid to %v", name, key.ID, key.State, key.MaterialID, key.ValidTo)
		}
		return nil
	})
	return key, err
}

func inState(state string) func(cloud.Key) bool {
	return func(k cloud.Key) bool { return k.State == state }
}

// wantError checks what an error is.
func wantError(err error, want error) error {
	switch {
	case err == nil:
		return fmt.Errorf("it succeeded, which should be refused: %w", want)
	case !errors.Is(err, want):
		return fmt.Errorf("it should be refused as %q, not: %w", want, err)
	}
	return nil
}

// wrapped fetches parameters and wraps material under them. A key that was
// just made may not be found yet.
func (r *run) wrapped(ctx context.Context, id string, material []byte) (p cloud.ImportParameters, w []byte, err error) {
	err = r.eventually(ctx, func() (err error) {
		p, err = r.kms.ParametersForImport(ctx, id, "RSAES_OAEP_SHA_256")
		return err
	})
	if err != nil {
		return p, nil, err
	}
	public, err := x509.ParsePKIXPublicKey(p.PublicKey)
	if err != nil {
		return p, nil, err
	}
	w, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil) // package cloud checked that it is RSA
	return p, w, err
}

func (r *run) importInto(ctx context.Context, id string, material []byte, validTo time.Time) (materialID string, err error) {
	p, w, err := r.wrapped(ctx, id, material)
	if err != nil {
		return "", err
	}
	return r.kms.ImportKeyMaterial(ctx, id, p.Token, w, cloud.Import{ValidTo: validTo})
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// probe encrypts and decrypts under a key.
func (r *run) probe(ctx context.Context, name string) (ciphertext []byte, err error) {
	plaintext, about := []byte("byokd"), map[string]string{"byokd-canary": r.id}
	err = r.eventually(ctx, func() (err error) {
		ciphertext, err = r.kms.Encrypt(ctx, name, plaintext, about)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ciphertext, r.decrypts(ctx, name, ciphertext)
}

func (r *run) decrypts(ctx context.Context, name string, ciphertext []byte) error {
	return r.eventually(ctx, func() error {
		got, err := r.kms.Decrypt(ctx, name, ciphertext, map[string]string{"byokd-canary": r.id})
		if err == nil && !bytes.Equal(got, []byte("byokd")) {
			return errors.New("the plaintext is another one")
		}
		return err
	})
}

// refusesUse waits until a key cannot be used.
func (r *run) refusesUse(ctx context.Context, id string) error {
	return r.eventually(ctx, func() error {
		_, err := r.kms.Encrypt(ctx, id, []byte("x"), nil)
		return wantError(err, cloud.ErrState)
	})
}

func (r *run) alias() string { return "alias/byokd-conformance-" + r.id }

// sameTags reports whether all tags are there.
func sameTags(have, want map[string]string) error {
	if !maps.Equal(have, want) {
		return fmt.Errorf("the tags are %v, not %v", have, want)
	}
	return nil
}

func contains(list []string, s string) error {
	if !slices.Contains(list, s) {
		return fmt.Errorf("%v has no %s", list, s)
	}
	return nil
}
