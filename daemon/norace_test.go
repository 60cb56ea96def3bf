//go:build !race

package daemon

const (
	manyFiles     = 10000 // that TestTenThousandFilesAtOnce drops
	tortureRounds = 8     // of TestTorture
)
