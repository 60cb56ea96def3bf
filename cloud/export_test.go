package cloud

import "context"

// NewPace makes the wait function of a quota bucket.
func NewPace(perSecond float64) func(context.Context) error { return newPace(perSecond).wait }

// ListLimit is the bound of FindKeys without the tagging API.
const ListLimit = listLimit
