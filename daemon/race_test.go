//go:build race

package daemon

// The race detector makes everything several times as dear: `make sample` runs these
// without it.
const (
	manyGroups    = 600  // against few, where costs are counted
	manyFiles     = 1000 // that TestTenThousandFilesAtOnce drops
	tortureRounds = 4    // of TestTorture: each way once
)
