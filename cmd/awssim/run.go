package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
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
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return usageError{error: err, told: true}
	}
	if flags.NArg() > 0 {
		return usagef("unexpected argument %q: the commands are keys and events, and none to serve", flags.Arg(0))
	}
	return nil
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var options awssim.Options
	flags := flag.NewFlagSet("awssim", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:4599", "`address` to listen on, loopback only; port 0 is any free one")
	pairs := flags.Int("wrapping-pairs", 1, "make `N` RSA-4096 wrapping pairs at start, most of a second each; other sizes when first needed")
	accountsFile := flags.String("accounts", "", "`file` with access keys: a JSON array of {access_key_id, secret_access_key, account, arn}")
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
	if *logRequests {
		options.Log = slog.New(slog.NewTextHandler(stderr, nil))
	}

	options.Pairs = awssim.NewPairs(*pairs)
	if err := options.Pairs.Fill("RSA_4096"); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{
		Handler:           awssim.New(options),
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

func readAccounts(name string) ([]awssim.Credential, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, usagef("--accounts: %w", err)
	}
	var credentials []awssim.Credential
	if err := json.Unmarshal(b, &credentials); err != nil {
		return nil, usagef("--accounts %s: write a JSON array of {access_key_id, secret_access_key, account}: %w", name, err)
	}
	return credentials, nil
}
