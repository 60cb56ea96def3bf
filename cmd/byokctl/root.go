package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"byokd/config"
	"byokd/daemon/control"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	defaultConfig = "/etc/byokd/byokd.toml"
	defaultSocket = "/run/byokd/control.sock"
)

// extra are the commands that builds with other tags have.
var extra []func(*tool) *cobra.Command

// A tool is one run of byokctl.
type tool struct {
	in          io.Reader
	out, stderr io.Writer

	config string // path of byokd.toml
	socket string // "": not named
	json   bool   // --json of the command that runs
	begun  bool   // a command runs: arguments and flags were good
}

// run runs byokctl and returns its exit status.
func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	t := &tool{in: in, out: out, stderr: stderr}
	root := t.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(stderr)
	c, err := root.ExecuteContextC(ctx)
	if err != nil {
		return t.report(err, c.CommandPath())
	}
	return 0
}

func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "byokctl",
		Short: "Operate byokd, which rotates AWS KMS keys from an HSM",
		Long: `Operate byokd, which rotates AWS KMS keys from an HSM.

Exit status: 0 done; 1 it failed; 2 usage, configuration, unknown group or job;
3 the daemon cannot be reached.`,
		Version:       control.BuildVersion(version).String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("byokctl {{.Version}}\n")
	root.PersistentFlags().StringVar(&t.config, "config", envOr("BYOKD_CONFIG", defaultConfig), "read the daemon's configuration in `FILE`, not $BYOKD_CONFIG")
	root.PersistentFlags().StringVar(&t.socket, "socket", os.Getenv("BYOKD_SOCKET"), "reach the daemon at `PATH`, not $BYOKD_SOCKET, nor in its runtime_dir")
	commands := []*cobra.Command{
		t.initCommand(),
		t.recoverCommand(),
		t.checkCommand(),
		t.statusCommand(),
		t.keysCommand(),
		t.planCommand(),
		t.rotateCommand(),
		t.syncCommand(),
		t.rollbackCommand(),
		t.keepCommand(),
		t.driftCommand(),
		t.timelineCommand(),
		t.eventsCommand(),
		t.auditCommand(),
		t.jobsCommand(),
		t.jobCommand(),
		t.retryCommand(),
		t.cancelCommand(),
		t.hsmCommand(),
		t.iamPolicyCommand(),
		t.firewallCommand(),
		t.newCommand(),
		t.versionCommand(),
	}
	for _, command := range extra {
		commands = append(commands, command(t))
	}
	for _, c := range commands {
		t.wrap(c)
		root.AddCommand(c)
	}
	return root
}

// wrap notes when the command begins to run: an error before that is one of usage.
func (t *tool) wrap(c *cobra.Command) {
	f := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		t.begun = true
		return f(c, args)
	}
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// jsonFlag gives a command the flag --json.
func (t *tool) jsonFlag(c *cobra.Command) {
	c.Flags().BoolVar(&t.json, "json", false, "print JSON")
}

// connect returns a client for the daemon's socket. It does not connect yet.
func (t *tool) connect() (*control.Client, error) {
	if t.socket == "" {
		path, err := t.findSocket()
		if err != nil {
			return nil, err
		}
		t.socket = path
	}
	return control.NewClient(t.socket), nil
}

// findSocket returns the socket in the runtime_dir of byokd.toml, or the usual
// one where the caller cannot read that file, as members of group byokd. A bad
// file that was named must not lead to another daemon than the one meant.
func (t *tool) findSocket() (string, error) {
	named := t.config != defaultConfig
	f, err := os.Open(t.config)
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist) && !named:
		return defaultSocket, nil
	case err != nil:
		return "", usage("%w", err).hint("--socket, or --config with the daemon's byokd.toml")
	}
	f.Close()
	// A bad mode on a secret must not stand between a person and the daemon.
	cfg, err := config.Load(t.config, config.Options{UID: -1, SkipSecrets: true, SkipFiles: true})
	switch {
	case err == nil:
		return cfg.Socket(), nil
	case !named:
		return defaultSocket, nil
	}
	return "", usage("%w", err).hint("--socket, as long as that file is bad")
}

// printJSON prints what a command was asked for with --json.
func (t *tool) printJSON(v any) error {
	e := json.NewEncoder(t.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printRaw prints JSON as printJSON would have made it.
func (t *tool) printRaw(raw json.RawMessage) error {
	var b bytes.Buffer
	b.Grow(2 * len(raw))
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	_, err := t.out.Write(b.Bytes())
	return err
}

// confirm asks on a terminal, and refuses where there is none.
func (t *tool) confirm(question string) error {
	if !terminal(t.in) {
		return usage("%s", "this wants a yes, and there is no terminal to ask on").hint("say --yes")
	}
	fmt.Fprintf(t.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(t.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return failed("not confirmed; nothing was done")
}

// terminal reports whether a stream is a terminal.
func terminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// completeGroups completes the names of groups, by asking the daemon.
func (t *tool) completeGroups(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	client, err := t.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer client.Close()
	groups, err := client.Status(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]cobra.Completion, len(groups))
	for i, g := range groups {
		names[i] = g.Group
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// exactlyOne checks that a command has one argument, called name.
func exactlyOne(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("exactly one %s is needed, not %d", name, len(args))
		}
		return nil
	}
}

// none checks that a command has no arguments.
func none(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}
