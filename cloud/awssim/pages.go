package awssim

import (
	"encoding/base64"
	"iter"
	"slices"
	"strings"
)

// A rest is what a page of a list leaves.
type rest struct{ marker string }

// into adds the members that tell of a rest to an output of KMS.
func (r rest) into(f fields) fields {
	f["Truncated"] = r.marker != ""
	if r.marker != "" {
		f["NextMarker"] = r.marker
	}
	return f
}

// page returns the part of a list that follows the marker: names in order, at
// most limit of them, or usual many if there is no limit. The marker is bound
// to the operation and holds the last name, so that a list that changes
// between two pages neither repeats nor loses what stays.
func page(c *call, names iter.Seq[string], limit *int64, usual int, marker *string) ([]string, rest, error) {
	sorted := slices.Sorted(names)
	if marker != nil {
		b, err := base64.RawURLEncoding.DecodeString(*marker)
		last, ok := strings.CutPrefix(string(b), c.request.Operation+"/")
		if err != nil || !ok {
			return nil, rest{}, fail("InvalidMarkerException", "Invalid marker.")
		}
		i, found := slices.BinarySearch(sorted, last)
		if found {
			i++
		}
		sorted = sorted[i:]
	}
	n := usual
	if limit != nil {
		n = int(*limit)
	}
	if len(sorted) <= n {
		return sorted, rest{}, nil
	}
	return sorted[:n], restAfter(c, sorted[n-1]), nil
}

// restAfter returns the rest of a list of which the last name has been shown.
func restAfter(c *call, last string) rest {
	return rest{base64.RawURLEncoding.EncodeToString([]byte(c.request.Operation + "/" + last))}
}
