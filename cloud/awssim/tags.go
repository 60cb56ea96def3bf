package awssim

import (
	"maps"
	"strings"
)

// maxTags is how many tags a key may have.
const maxTags = 50

type tag struct {
	TagKey   *string `required:"" len:"1,128"`
	TagValue *string `required:"" len:"0,256"`
}

// checkTags refuses tags that a key with the tags it has may not get.
func checkTags(tags []tag, has map[string]string) error {
	after := make(map[string]bool)
	for _, t := range tags {
		if strings.HasPrefix(strings.ToLower(*t.TagKey), "aws:") {
			return fail("TagException", "Tags beginning with aws: are reserved")
		}
		if after[*t.TagKey] {
			return fail("TagException", "Duplicate tag keys")
		}
		after[*t.TagKey] = true
	}
	for name := range has {
		after[name] = true
	}
	if len(after) > maxTags {
		return fail("TagException", "Too many tags")
	}
	return nil
}

func (k *key) tag(tags []tag) {
	for _, t := range tags {
		k.tags[*t.TagKey] = *t.TagValue
		k.everTagged = true
	}
}

type tagResourceInput struct {
	KeyId *string `required:"" len:"1,2048"`
	Tags  []tag   `required:""`
}

func (c *call) tagResource(in *tagResourceInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := checkTags(in.Tags, k.tags); err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	c.tagsChange(k)
	k.tag(in.Tags)
	return nil, nil
}

type untagResourceInput struct {
	KeyId   *string  `required:"" len:"1,2048"`
	TagKeys []string `required:"" each:"1,128"`
}

func (c *call) untagResource(in *untagResourceInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	c.tagsChange(k)
	for _, name := range in.TagKeys {
		delete(k.tags, name)
	}
	return nil, nil
}

type listResourceTagsInput struct {
	KeyId  *string `required:"" len:"1,2048"`
	Limit  *int64  `range:"1,50"`
	Marker *string `len:"1,1024"`
}

func (c *call) listResourceTags(in *listResourceTagsInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	names, more, err := page(c, maps.Keys(k.tags), in.Limit, 50, in.Marker)
	if err != nil {
		return nil, err
	}
	tags := []fields{}
	for _, name := range names {
		tags = append(tags, fields{"TagKey": name, "TagValue": k.tags[name]})
	}
	return more.into(fields{"Tags": tags}), nil
}
