//go:build !race

package daemon

const (
	manyGroups    = 2000  // against few, where costs are counted
	manyFiles     = 10000 // that TestTenThousandFilesAtOnce drops
	tortureRounds = 8     // of TestTorture
)
