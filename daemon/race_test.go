//go:build race

package daemon

// The race detector makes everything several times as dear: `make sample` runs these
// two without it.
const (
	manyFiles     = 1000 // that TestTenThousandFilesAtOnce drops
	tortureRounds = 4    // of TestTorture: each way once
)
