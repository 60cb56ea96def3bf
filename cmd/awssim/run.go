package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"byokd/cloud/awssim"
)

// Exit statuses.
const (
	exitDone  = 0
	exitFault = 1
	exitUsage = 2
)

// drain is how long requests under way may take after SIGTERM.
const drain = 2 * time.Second

// run is the command without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := serve
	if len(args) > 0 {
		switch args[0] {
		case "keys":
			command, args = keys, args[1:]
		case "events":
			command, args = events, args[1:]
		case "serve":
			args = args[1:]
		}
	}
	err := command(ctx, args, stdout, stderr)
	usage, isUsage := errors.AsType[usageError](err)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitDone
	case isUsage:
		if !usage.told {
			fmt.Fprintln(stderr, "awssim:", err)
		}
		return exitUsage
	}
	fmt.Fprintln(stderr, "awssim:", err)
	return exitFault
}

// A usageError is a mistake in the command line.
type usageError struct {
	error
	told bool // package flag has printed it
}

func usagef(format string, args ...any) error {
	return usageError{error: fmt.Errorf(format, args...)}
}

// parse parses flags and refuses other arguments.
func parse(flags *flag.FlagSet, args []string, stderr io.Writer) error {
	flags.SetOutput(stderr)
	if err := flags.Parse(args); err != nil {
		return parseError(err)
	}
	if flags.NArg() > 0 {
		return usagef("unexpected argument %q: the commands are keys and events, and none to serve", flags.Arg(0))
	}
	return nil
}

// parseError returns what to do about an error of package flag.
func parseError(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return usageError{error: err, told: true}
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var options awssim.Options
	flags := flag.NewFlagSet("awssim", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:4599", "`address` to listen on, loopback only; port 0 is any free one")
	pairs := flags.Int("wrapping-pairs", 1, "make `N` RSA-4096 wrapping pairs at start, most of a second each; other sizes when first needed")
	accountsFile := flags.String("accounts", "", "`file` with access keys: a JSON array of {access_key_id, secret_access_key, account, arn}")
	roles := flags.String("roles", "", "`file` with roles: a JSON array of {arn, external_id, policy}. Without it, any role can be assumed")
	state := flags.String("state", "", "`file` to keep the state in, key material in the clear; without it, it is kept in memory")
	flags.Func("regions", "`Regions` whose endpoint this is, separated by commas: what is signed for another one is refused. Without it, it is that of all", func(v string) error {
		for region := range strings.SplitSeq(v, ",") {
			if region == "" || strings.Trim(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				return fmt.Errorf("%q is no Region: write eu-central-1,eu-west-1", region)
			}
			options.Regions = append(options.Regions, region)
		}
		return nil
	})
	var hard switches
	hard.define(flags, &options)
	logRequests := flags.Bool("log", false, "log each request to stderr")
	flags.Func("account", "access key `AKID:SECRET:ACCOUNT`; may be given often. Without any, all access keys are accepted", func(s string) error {
		parts := strings.Split(s, ":")
		if len(parts) != 3 {
			return errors.New("write AKID:SECRET:ACCOUNT")
		}
		options.Credentials = append(options.Credentials, awssim.Credential{AccessKeyID: parts[0], SecretAccessKey: parts[1], Account: parts[2]})
		return nil
	})
	if err := parse(flags, args, stderr); err != nil {
		return err
	}
	if err := loopback(*listen); err != nil {
		return err
	}
	if *pairs < 1 {
		return usagef("--wrapping-pairs %d: at least 1 is needed", *pairs)
	}
	if *accountsFile != "" {
		more, err := readAccounts(*accountsFile)
		if err != nil {
			return err
		}
		options.Credentials = append(options.Credentials, more...)
	}
	for _, c := range options.Credentials {
		if c.AccessKeyID == "" || c.SecretAccessKey == "" || len(c.Account) != 12 || strings.Trim(c.Account, "0123456789") != "" {
			return usagef("access key %q: an ID, a secret and an account of 12 digits are needed", c.AccessKeyID)
		}
	}
	if *roles != "" {
		if err := readRoles(*roles, &options); err != nil {
			return err
		}
	}
	if err := hard.apply(&options); err != nil {
		return err
	}
	if *logRequests {
		options.Log = slog.New(slog.NewTextHandler(stderr, nil))
	}

	options.Pairs = awssim.NewPairs(*pairs)
	sim, err := open(options, *state)
	if err != nil {
		return err
	}
	if err := options.Pairs.Fill("RSA_4096"); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{
		Handler:           sim,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(stderr, "awssim: ", 0),
	}
	fmt.Fprintf(stdout, "awssim: listening on http://%s\n", listener.Addr())

	var stopping sync.WaitGroup
	served, cancel := context.WithCancel(ctx)
	stopping.Go(func() {
		<-served.Done()
		patience, done := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer done()
		if server.Shutdown(patience) != nil {
			_ = server.Close() // the listener is closed already, connections are cut
		}
	})
	err = server.Serve(listener)
	cancel()
	stopping.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// open returns a simulator that keeps its state in a file, if one is named.
func open(o awssim.Options, file string) (*awssim.Sim, error) {
	if file == "" {
		return awssim.New(o), nil
	}
	return awssim.Open(o, file)
}

// loopback refuses an address that others can reach: the simulator shows what
// it holds to everybody.
func loopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return usagef("--listen %s: write HOST:PORT, e.g. 127.0.0.1:4599", address)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return usagef("--listen %s: only loopback addresses are served, e.g. 127.0.0.1:4599", address)
	}
	return nil
}
