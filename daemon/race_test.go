//go:build race

package daemon

// manyFiles is how many files TestTenThousandFilesAtOnce drops: the race detector
// makes each of them several times as dear. `make sample` runs it without.
const manyFiles = 1000
