// Command byokd keeps a company's own keys in AWS KMS fresh, from an HSM on its
// own premises. See byokd(8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	_ "time/tzdata" // time zones also where the system has none

	"byokd/config"
	"byokd/daemon"
	"byokd/daemon/control"
	"byokd/systemd"
)

// version is set by the build (-ldflags "-X main.version=…").
var version string

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// run is main with its exit status.
func run(args []string, stderr io.Writer) int {
	options := daemon.DefaultOptions()
	flags := flag.NewFlagSet("byokd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&options.ConfigPath, "config", options.ConfigPath, "path of byokd.toml")
	showVersion := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return daemon.ExitOK
	case err != nil || flags.NArg() > 0:
		if err == nil {
			fmt.Fprintf(stderr, "byokd: unexpected argument %q\n", flags.Arg(0))
		}
		return daemon.ExitHelpless // not 2, which means a panic
	case *showVersion:
		fmt.Println("byokd", control.BuildVersion(version))
		return daemon.ExitOK
	}

	log := newSwitchable(stderr)
	options.Logger = slog.New(log)
	options.SetLog = log.follow
	options.Version = version
	options.Notifier = systemd.FromEnvironment()

	// SIGTERM and SIGINT stop byokd gracefully, a second one at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	// A burst of SIGHUPs is one reload.
	reload := make(chan struct{}, 1)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		for range hangups {
			// At once, whatever byokd is doing: systemctl reload returns when READY
			// follows, and would not wait if nothing were heard. One does follow,
			// since this is before the reload is asked for.
			options.Notifier.Reloading()
			select {
			case reload <- struct{}{}:
			default:
			}
		}
	}()
	options.Reload = reload

	if err := daemon.Run(ctx, options); err != nil {
		status := daemon.ExitStatus(err)
		message := fmt.Sprintf("byokd: %v", err)
		if systemd.StderrIsJournal() {
			// Lines of a stream have the priority of a message, else (sd-daemon(3)).
			message = "<3>" + strings.ReplaceAll(message, "\n", "\n<3>")
		}
		fmt.Fprintln(stderr, message)
		return status
	}
	return daemon.ExitOK
}

// switchable is a slog.Handler whose format and level follow [log].
type switchable struct {
	level   *slog.LevelVar
	formats map[string]slog.Handler // text, json and auto
	now     *atomic.Pointer[slog.Handler]
	with    func(slog.Handler) slog.Handler // attributes and groups, in order
}

func newSwitchable(stderr io.Writer) *switchable {
	s := &switchable{level: new(slog.LevelVar), now: new(atomic.Pointer[slog.Handler]), with: func(h slog.Handler) slog.Handler { return h }}
	options := &slog.HandlerOptions{Level: s.level}
	s.formats = map[string]slog.Handler{"text": slog.NewTextHandler(stderr, options), "json": slog.NewJSONHandler(stderr, options)}
	s.formats["auto"] = s.formats["text"]
	if systemd.StderrIsJournal() {
		if journal, err := systemd.NewJournalHandler(systemd.JournalOptions{Level: s.level}); err == nil {
			s.formats["auto"] = journal
		}
	}
	s.follow(config.Log{Level: "info", Format: "auto"})
	return s
}

// follow takes over the level and format of byokd.toml, which have been
// validated.
func (s *switchable) follow(cfg config.Log) {
	level := slog.LevelInfo
	_ = level.UnmarshalText([]byte(cfg.Level))
	s.level.Set(level)
	h := s.formats[cfg.Format]
	s.now.Store(&h)
}

func (s *switchable) Enabled(ctx context.Context, level slog.Level) bool {
	return (*s.now.Load()).Enabled(ctx, level)
}

func (s *switchable) Handle(ctx context.Context, r slog.Record) error {
	return s.with(*s.now.Load()).Handle(ctx, r)
}

func (s *switchable) WithAttrs(attrs []slog.Attr) slog.Handler {
	return s.derive(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (s *switchable) WithGroup(name string) slog.Handler {
	return s.derive(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (s *switchable) derive(more func(slog.Handler) slog.Handler) slog.Handler {
	with := s.with
	return &switchable{s.level, s.formats, s.now, func(h slog.Handler) slog.Handler { return more(with(h)) }}
}
