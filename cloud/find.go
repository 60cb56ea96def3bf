package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	taggingtypes "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"
)

const (
	// listLimit is how many keys FindKeys looks through one by one.
	listLimit = 2000
	// listWorkers ask for tags at once. KMS allows 2,000 ListResourceTags a
	// second (KMS Developer Guide, "Request quotas").
	listWorkers = 8
	// tagsLifetime is how long the tags of a key that was listed count, so
	// that many groups that look at once share one pass. It is well under
	// the two minutes for which the look for an unanswered CreateKey is
	// repeated. The list of keys itself is always asked for anew.
	tagsLifetime = 30 * time.Second
)

// seenTags are the tags of one key at one time.
type seenTags struct {
	tags   map[string]string
	denied bool
	at     time.Time
}

// FindKeys returns the keys of this account and Region that carry all the given
// tags, those pending deletion included, with all their tags, in the order of
// their ARNs. AWS may show a key and its tags late.
//
// It asks the tagging API (tag:GetResources). Where that is denied or cannot be
// reached, it lists the keys and asks for the tags of each (kms:ListKeys,
// kms:ListResourceTags), up to 2,000 keys: beyond that it fails with an error of
// class Operator, and tag:GetResources is needed. In such a listing a key whose
// tags may not be read counts as somebody else's; where none may be read, it
// fails with ErrDenied.
func (k *KMS) FindKeys(ctx context.Context, tags map[string]string) ([]TaggedKey, error) {
	keys, err := k.findByTagging(ctx, tags)
	if err == nil {
		return keys, nil
	}
	for _, final := range []error{ErrCredentials, ErrClock, ErrThrottled} {
		if errors.Is(err, final) {
			return nil, err
		}
	}
	if ClassOf(err) == Interrupted {
		return nil, err
	}
	return k.listByTags(ctx, tags, err)
}

func (k *KMS) findByTagging(ctx context.Context, tags map[string]string) ([]TaggedKey, error) {
	in := &tagging.GetResourcesInput{ResourceTypeFilters: []string{"kms:key"}}
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		in.TagFilters = append(in.TagFilters, taggingtypes.TagFilter{Key: aws.String(name), Values: []string{tags[name]}})
	}
	var keys []TaggedKey
	pages := tagging.NewGetResourcesPaginator(k.tagging, in)
	for pages.HasMorePages() {
		r := request{service: "tag", operation: "GetResources"}
		out, err := send(ctx, k.session, r, func(ctx context.Context) (*tagging.GetResourcesOutput, error) {
			return pages.NextPage(ctx)
		})
		if err != nil {
			return nil, err
		}
		for _, m := range out.ResourceTagMappingList {
			key := TaggedKey{ARN: aws.ToString(m.ResourceARN), Tags: make(map[string]string)}
			arn, err := awsarn.Parse(key.ARN)
			id, isKey := strings.CutPrefix(arn.Resource, "key/")
			if err != nil || !isKey || arn.Region != k.region {
				continue
			}
			key.KeyID = id
			for _, t := range m.Tags {
				key.Tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
			}
			if hasTags(key.Tags, tags) {
				keys = append(keys, key)
			}
		}
	}
	slices.SortFunc(keys, func(a, b TaggedKey) int { return strings.Compare(a.ARN, b.ARN) })
	return keys, nil
}

func hasTags(have, want map[string]string) bool {
	for name, value := range want {
		if v, ok := have[name]; !ok || v != value {
			return false
		}
	}
	return true
}

// listByTags looks at each key. taggingErr is why.
func (k *KMS) listByTags(ctx context.Context, want map[string]string, taggingErr error) ([]TaggedKey, error) {
	select {
	case k.listing <- struct{}{}: // one pass at a time: the next finds tags seen
		defer func() { <-k.listing }()
	case <-ctx.Done():
		return nil, k.fail(ctx, reads("ListKeys", ""), ctx.Err())
	}
	arns, err := k.listKeys(ctx, taggingErr)
	if err != nil {
		return nil, err
	}
	if err := k.readTags(ctx, slices.Sorted(maps.Keys(arns))); err != nil {
		return nil, err
	}

	k.tagsMu.Lock()
	defer k.tagsMu.Unlock()
	maps.DeleteFunc(k.tags, func(id string, _ seenTags) bool { _, there := arns[id]; return !there })
	var keys []TaggedKey
	readable := 0
	for id, seen := range k.tags {
		if seen.denied {
			continue
		}
		readable++
		if hasTags(seen.tags, want) {
			keys = append(keys, TaggedKey{KeyID: id, ARN: arns[id], Tags: maps.Clone(seen.tags)})
		}
	}
	if readable == 0 && len(arns) > 0 {
		return nil, &Error{
			Operation: "kms:ListResourceTags", Region: k.region, class: Operator, waiting: waitPermission,
			kind: ErrDenied, err: taggingErr,
			detail: fmt.Sprintf("the tags of none of %d keys may be read; grant tag:GetResources or kms:ListResourceTags to credential %q", len(arns), k.name),
		}
	}
	slices.SortFunc(keys, func(a, b TaggedKey) int { return strings.Compare(a.ARN, b.ARN) })
	return keys, nil
}

// listKeys returns the ARNs of all keys by their IDs.
func (k *KMS) listKeys(ctx context.Context, taggingErr error) (map[string]string, error) {
	arns := make(map[string]string)
	pages := kms.NewListKeysPaginator(k.client, &kms.ListKeysInput{Limit: aws.Int32(1000)})
	for pages.HasMorePages() {
		r := reads("ListKeys", "")
		r.grant = "tag:GetResources, or kms:ListKeys and kms:ListResourceTags,"
		out, err := send(ctx, k.session, r, func(ctx context.Context) (*kms.ListKeysOutput, error) {
			return pages.NextPage(ctx)
		})
		if err != nil {
			return nil, err
		}
		for _, key := range out.Keys {
			arns[aws.ToString(key.KeyId)] = aws.ToString(key.KeyArn)
		}
		if len(arns) > listLimit {
			return nil, &Error{
				Operation: r.action(), Region: k.region, class: Operator, waiting: waitPermission,
				kind: ErrDenied, err: taggingErr,
				detail: fmt.Sprintf("more than %d keys, too many to look at one by one; grant tag:GetResources to credential %q, or let byokd reach the tagging endpoint (%v)", listLimit, k.name, taggingErr),
			}
		}
	}
	return arns, nil
}

// readTags brings k.tags up to date for the keys given.
func (k *KMS) readTags(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan string)
	var workers sync.WaitGroup
	for range listWorkers {
		workers.Go(func() {
			for id := range work {
				tags, err := k.KeyTags(ctx, id)
				switch {
				case errors.Is(err, ErrNotFound):
					continue // deleted meanwhile
				case err != nil && !errors.Is(err, ErrDenied):
					cancel(err)
					continue
				}
				k.tagsMu.Lock()
				k.tags[id] = seenTags{tags: tags, denied: err != nil, at: time.Now()}
				k.tagsMu.Unlock()
			}
		})
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		k.tagsMu.Lock()
		seen, ok := k.tags[id]
		k.tagsMu.Unlock()
		if !ok || time.Since(seen.at) >= tagsLifetime {
			work <- id
		}
	}
	close(work)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		if _, ok := errors.AsType[*Error](cause); ok {
			return cause
		}
		return k.fail(ctx, reads("ListResourceTags", ""), cause)
	}
	return nil
}

// forgetTags makes the next listing ask for a key's tags again.
func (k *KMS) forgetTags(keyID string) {
	if arn, err := awsarn.Parse(keyID); err == nil {
		keyID = strings.TrimPrefix(arn.Resource, "key/")
	}
	k.tagsMu.Lock()
	defer k.tagsMu.Unlock()
	delete(k.tags, keyID)
}
