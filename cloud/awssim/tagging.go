package awssim

import (
	"maps"
	"slices"
)

// taggingOperations are the operations of the Resource Groups Tagging API.
var taggingOperations = map[string]operation{
	"GetResources": op((*call).getResources),
}

type getResourcesInput struct {
	PaginationToken           *string     `len:"0,2048"`
	TagFilters                []tagFilter `len:"0,50"`
	ResourcesPerPage          *int64      `range:"1,100"`
	TagsPerPage               *int64      `range:"100,500"`
	ResourceTypeFilters       []string    `len:"0,100" each:"0,256"`
	ResourceARNList           []string    `len:"1,100" each:"1,1011"`
	IncludeComplianceDetails  bool
	ExcludeCompliantResources bool
}

type tagFilter struct {
	Key    *string  `len:"1,128"`
	Values []string `len:"0,20" each:"0,256"`
}

// getResources finds KMS keys by their tags: those that have tags, or once
// had.
func (c *call) getResources(in *getResourcesInput) (any, error) {
	token := in.PaginationToken
	if deref(token) == "" {
		token = nil
	}
	if in.ResourceARNList != nil && (len(in.TagFilters) > 0 || len(in.ResourceTypeFilters) > 0 ||
		in.ResourcesPerPage != nil || in.TagsPerPage != nil || token != nil) {
		return nil, fail("InvalidParameterException", "ResourceARNList cannot be used together with filters or pagination.")
	}
	for _, f := range in.TagFilters {
		if f.Key == nil {
			return nil, fail("InvalidParameterException", "A tag filter needs a key.")
		}
	}
	matching := make(map[string]map[string]string) // tags by ARN
	for _, k := range c.realm.keys {
		if tags, visible := c.readTags(k); visible && k.everTagged && in.matches(k.arn, tags) {
			matching[k.arn] = tags
		}
	}
	arns, more, err := page(c, maps.Keys(matching), in.ResourcesPerPage, 50, token)
	if err != nil {
		return nil, fail("InvalidParameterException", "The PaginationToken is not valid.")
	}
	arns, more = fitTags(c, arns, more, matching, in)
	found := []fields{}
	for _, arn := range arns {
		tags := []fields{}
		for _, name := range slices.Sorted(maps.Keys(matching[arn])) {
			tags = append(tags, fields{"Key": name, "Value": matching[arn][name]})
		}
		found = append(found, fields{"ResourceARN": arn, "Tags": tags})
	}
	return fields{"ResourceTagMappingList": found, "PaginationToken": more.marker}, nil
}

// fitTags shortens a page to the tags that are allowed on it. A resource
// counts as one with at least one tag and is never split.
func fitTags(c *call, arns []string, more rest, tags map[string]map[string]string, in *getResourcesInput) ([]string, rest) {
	if in.TagsPerPage == nil {
		return arns, more
	}
	left := int(*in.TagsPerPage)
	for i, arn := range arns {
		if left -= max(len(tags[arn]), 1); left < 0 {
			return arns[:i], restAfter(c, arns[i-1]) // the first one always fits
		}
	}
	return arns, more
}

// matches reports whether GetResources is to show a resource.
func (in *getResourcesInput) matches(arn string, tags map[string]string) bool {
	if in.ResourceARNList != nil && !slices.Contains(in.ResourceARNList, arn) {
		return false
	}
	if len(in.ResourceTypeFilters) > 0 && !slices.ContainsFunc(in.ResourceTypeFilters, func(t string) bool {
		return t == "kms" || t == "kms:key"
	}) {
		return false
	}
	for _, f := range in.TagFilters {
		value, ok := tags[*f.Key]
		if !ok || len(f.Values) > 0 && !slices.Contains(f.Values, value) {
			return false
		}
	}
	return true
}
