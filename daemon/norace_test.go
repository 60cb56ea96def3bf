//go:build !race

package daemon

// manyFiles is how many files TestTenThousandFilesAtOnce drops.
const manyFiles = 10000
