package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"byokd/cloud/awssim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit statuses.
const (
	exitDone  = 0
	exitFault = 1
	exitUsage = 2
)

// run is the command without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	failures, err := replayCases(ctx, args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitDone
	case errors.Is(err, errUsage):
		fmt.Fprintln(stderr, "replay:", err)
		return exitUsage
	case err != nil:
		fmt.Fprintln(stderr, "replay:", err)
		return exitFault
	case failures > 0:
		return exitFault
	}
	return exitDone
}

var errUsage = errors.New("mistake in the command line")

// replayCases replays what the arguments name, against a simulator of its own
// or another endpoint, and returns how many cases failed.
func replayCases(ctx context.Context, args []string, stdout, stderr io.Writer) (failures int, err error) {
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	url := flags.String("endpoint", "", "`URL` of KMS; without it, a simulator in this process")
	events := flags.String("events-endpoint", "", "`URL` of EventBridge, if it is another one")
	region := flags.String("region", "eu-central-1", "Region")
	account := flags.String("account", awssim.DefaultAccount, "`account` of the credentials, which are those of the environment if there are any")
	allowAWS := flags.Bool("allow-aws", false, "allow AWS itself: each case makes keys, which cost money until they are deleted, 7 days later")
	flags.SetOutput(stderr)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, err
		}
		return 0, fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() == 0 {
		return 0, fmt.Errorf("%w: name the files of recorded cases", errUsage)
	}
	for _, each := range []string{*url, *events} {
		if strings.Contains(each, ".amazonaws.") && !*allowAWS {
			return 0, fmt.Errorf("%w: %s is AWS, where this makes keys, which cost money: if that is meant, say --allow-aws", errUsage, each)
		}
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	target := endpoint{
		url: *url, events: *events, region: *region, account: *account,
		credentials: aws.Credentials{
			AccessKeyID: cmp.Or(os.Getenv("AWS_ACCESS_KEY_ID"), "AKIAREPLAY"), SecretAccessKey: cmp.Or(os.Getenv("AWS_SECRET_ACCESS_KEY"), "secret"),
			SessionToken: os.Getenv("AWS_SESSION_TOKEN"),
		},
		client: &http.Client{Transport: transport, Timeout: time.Minute},
	}
	if *url == "" {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("listen: %w", err)
		}
		server := &http.Server{Handler: awssim.New(awssim.Options{}), ReadHeaderTimeout: 10 * time.Second}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(listener) }) // until Close
		defer serving.Wait()
		defer server.Close()
		target.own = true
		target.url, target.account = "http://"+listener.Addr().String(), awssim.DefaultAccount
		target.credentials = aws.Credentials{AccessKeyID: "AKIAREPLAY", SecretAccessKey: "secret"}
	}
	totals := make(map[outcome]int)
	err = replay(ctx, target, flags.Args(), func(r result) {
		totals[r.outcome]++
		line := fmt.Sprintf("%-8s  %s", r.outcome, r.name)
		if r.why != "" {
			line += ": " + r.why
		}
		fmt.Fprintln(stdout, line)
	})
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(stdout, "%d passed, %d failed, %d skipped, %d known deviations\n",
		totals[passed], totals[failed], totals[skipped], totals[deviates])
	return totals[failed], nil
}
