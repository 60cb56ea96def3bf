// Awssim simulates AWS KMS, EventBridge, STS, the Resource Groups Tagging API and
// Service Quotas on loopback. See package byokd/cloud/awssim.
//
//	awssim [--listen 127.0.0.1:4599] [--wrapping-pairs N] [--account AKID:SECRET:ACCOUNT]... [--accounts FILE] [--roles FILE]
//	       [--state FILE] [--regions R,R] [--iam] [--iam-policy AKID=FILE]... [--quotas aws] [--lag DURATION] [--latency TIME]
//	       [--rotation-time TIME] [--kms-events] [--usage-tracked-after TIME] [--fault WHEN:WHAT[:RATE%][@OPERATION]]... [--fault-seed N] [--log]
//	awssim keys --endpoint URL [--json]
//	awssim events --endpoint URL [--json]
//
// The simulator prints one line when it is ready, "awssim: listening on URL",
// and runs until SIGTERM or SIGINT. Port 0 is any free port.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
