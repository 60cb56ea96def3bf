package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"byokd/cloud/awssim"
)

// switches are the flags that make the simulator as hard to live with as AWS.
type switches struct {
	policies map[string]string // files by access key ID
	faults   []fault
	seed     uint64
}

func (s *switches) define(flags *flag.FlagSet, o *awssim.Options) {
	s.policies = make(map[string]string)
	flags.Func("quotas", "limit requests: `aws` for AWS's numbers, and more after commas, such as aws,kms:CreateKey=1", func(v string) (err error) {
		o.Quotas, err = parseQuotas(v)
		return err
	})
	flags.Func("lag", "reads that lag behind writes: a `duration`, or new-keys=2s,aliases=5s,tagging=1m", func(v string) (err error) {
		o.Consistency, err = parseLag(v)
		return err
	})
	flags.DurationVar(&o.Latency, "latency", 0, "`time` that each request waits")
	flags.Func("usage-tracked-after", "`time` after the start from which on GetKeyLastUsage tracks", func(v string) error {
		d, err := time.ParseDuration(v)
		if err == nil && d < 0 {
			err = errors.New("the time is negative")
		}
		o.UsageTrackedFrom = time.Now().Add(d)
		return err
	})
	flags.DurationVar(&o.RotationTime, "rotation-time", 0, "`time` that RotateKeyOnDemand takes")
	flags.BoolVar(&o.KMSEvents, "kms-events", false, "put KMS's own events on the default bus")
	flags.BoolVar(&o.IAM, "iam", false, "subject all principals to IAM and key policies, not only those that have an IAM policy")
	flags.Func("iam-policy", "`AKID=FILE`: the IAM policy document of an access key's principal; may be given often", func(v string) error {
		id, file, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("write AKID=FILE")
		}
		s.policies[id] = file
		return nil
	})
	flags.Func("fault", "`WHEN:WHAT[:RATE%][@OPERATION]`: WHEN is before or after the effect; WHAT is drop, hang or an error code; may be given often", func(v string) error {
		f, err := parseFault(v)
		s.faults = append(s.faults, f)
		return err
	})
	flags.Uint64Var(&s.seed, "fault-seed", 1, "`number` that decides which requests faults with a rate hit")
}

// apply puts what the flags said into the options.
func (s *switches) apply(o *awssim.Options) error {
	for i, c := range o.Credentials {
		file, ok := s.policies[c.AccessKeyID]
		if !ok {
			continue
		}
		document, err := os.ReadFile(file)
		if err != nil {
			return usagef("--iam-policy: %w", err)
		}
		o.Credentials[i].Policy = document
		delete(s.policies, c.AccessKeyID)
	}
	for id := range s.policies {
		return usagef("--iam-policy %s=…: there is no access key %s: give it with --account", id, id)
	}
	for _, c := range o.Credentials {
		if len(c.Policy) == 0 {
			continue
		}
		if err := awssim.CheckPolicy(c.Policy); err != nil {
			return usagef("the IAM policy of access key %s: %w", c.AccessKeyID, err)
		}
	}
	o.Before, o.After = hook(s.faults, false, s.seed), hook(s.faults, true, s.seed+1)
	return nil
}

func parseQuotas(v string) (*awssim.Quotas, error) {
	first, rest, _ := strings.Cut(v, ",")
	if first != "aws" {
		return nil, errors.New("write aws, and other numbers after it if there are any")
	}
	q := &awssim.Quotas{PerSecond: make(map[string]float64)}
	if rest == "" {
		return q, nil
	}
	for part := range strings.SplitSeq(rest, ",") {
		name, number, _ := strings.Cut(part, "=")
		perSecond, err := strconv.ParseFloat(number, 64)
		if err != nil || perSecond < 0 || !strings.Contains(name, ":") {
			return nil, fmt.Errorf("%q: write an IAM action and a number per second, such as kms:CreateKey=1", part)
		}
		if !awssim.HasQuota(name) {
			return nil, fmt.Errorf("%q: no quota %s; those of cryptographic operations are kms:symmetric, kms:rsa and kms:ecc, of EventBridge's other than PutEvents events:control", part, name)
		}
		q.PerSecond[name] = perSecond
	}
	return q, nil
}

func parseLag(v string) (c awssim.Consistency, err error) {
	if d, err := time.ParseDuration(v); err == nil && d >= 0 {
		return awssim.Consistency{NewKeys: d, Aliases: d, Tagging: d}, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		name, value, _ := strings.Cut(part, "=")
		field := map[string]*time.Duration{"new-keys": &c.NewKeys, "aliases": &c.Aliases, "tagging": &c.Tagging}[name]
		d, err := time.ParseDuration(value)
		if field == nil || err != nil || d < 0 {
			return c, fmt.Errorf("%q: write a duration, or new-keys=2s,aliases=5s,tagging=1m", part)
		}
		*field = d
	}
	return c, nil
}

// A fault is something that goes wrong with some requests.
type fault struct {
	awssim.Fault
	after     bool
	rate      float64 // from 0 to 1
	operation string  // empty: any
}

func parseFault(v string) (f fault, err error) {
	rest, operation, _ := strings.Cut(v, "@")
	f.operation, f.rate = operation, 1
	if operation != "" && !awssim.HasOperation(operation) {
		return f, fmt.Errorf("there is no operation %s", operation)
	}
	parts := strings.Split(rest, ":")
	wrong := errors.New("write before or after, drop, hang or an error code, and perhaps a rate and an operation: after:drop:5%@ImportKeyMaterial")
	if len(parts) < 2 || len(parts) > 3 || parts[1] == "" {
		return f, wrong
	}
	switch parts[0] {
	case "before":
	case "after":
		f.after = true
	default:
		return f, wrong
	}
	switch parts[1] {
	case "drop":
		f.Drop = true
	case "hang":
		f.Hang = true
	default:
		f.Code = parts[1]
	}
	if len(parts) == 3 {
		percent, err := strconv.ParseFloat(strings.TrimSuffix(parts[2], "%"), 64)
		if err != nil || percent < 0 || percent > 100 {
			return f, wrong
		}
		f.rate = percent / 100
	}
	return f, nil
}

// hook returns what lets the faults of one moment happen, nil if there are
// none.
func hook(faults []fault, after bool, seed uint64) func(awssim.Request) *awssim.Fault {
	var mine []fault
	for _, f := range faults {
		if f.after == after {
			mine = append(mine, f)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(seed, seed))
	return func(r awssim.Request) *awssim.Fault {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range mine {
			if (f.operation == "" || f.operation == r.Operation) && dice.Float64() < f.rate {
				return &f.Fault
			}
		}
		return nil
	}
}

// readAccounts reads a file of access keys.
func readAccounts(name string) ([]awssim.Credential, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, usagef("--accounts: %w", err)
	}
	var credentials []awssim.Credential
	if err := json.Unmarshal(b, &credentials); err != nil {
		return nil, usagef("--accounts %s: write a JSON array of {access_key_id, secret_access_key, account}: %w", name, err)
	}
	return credentials, nil
}

// readRoles reads a file of roles.
func readRoles(name string, o *awssim.Options) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return usagef("--roles: %w", err)
	}
	if err := json.Unmarshal(b, &o.Roles); err != nil {
		return usagef("--roles %s: write a JSON array of {arn, external_id, policy}: %w", name, err)
	}
	for _, r := range o.Roles {
		if len(r.Policy) == 0 {
			continue
		}
		if err := awssim.CheckPolicy(r.Policy); err != nil {
			return usagef("the IAM policy of %s: %w", r.ARN, err)
		}
	}
	return nil
}
