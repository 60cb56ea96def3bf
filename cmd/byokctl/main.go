// Byokctl is the operator's tool of byokd: a client of the daemon's control
// socket, which also checks configuration and makes the database.
//
// Exit status: 0 done; 1 it failed; 2 usage, configuration, unknown group or
// job; 3 the daemon cannot be reached.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // check knows the time zones that byokd knows
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends what can be ended in order, the second one all.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
