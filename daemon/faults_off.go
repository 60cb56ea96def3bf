//go:build !faults

package daemon

import "time"

// Builds with the tag faults, which tests make, can be told to die at a record
// of the journal: see faults_on.go. This one cannot.

func beforeRecord() {}
func afterRecord()  {}

func stuckIn(string) {}

// createLook is the engine's default.
func createLook() time.Duration { return 0 }
