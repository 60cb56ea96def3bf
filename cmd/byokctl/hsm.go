package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"

	"byokd/daemon"
	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) hsmCommand() *cobra.Command {
	var login string
	c := &cobra.Command{
		Use:   "hsm",
		Short: "Show what the tokens can do",
		Long: `Show what the tokens can do: ways to wrap that were proven, the algorithm that was
chosen and why. A running byokd is asked; only where none runs does byokctl log in
itself, under byokd's record of logins.

After a wrong PIN byokd does not log in to that token again, since tokens lock;
--login makes it try once more.`,
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.hsm(c.Context(), login)
		},
	}
	c.Flags().StringVar(&login, "login", "", "log in to HSM `NAME` even after a wrong PIN, once")
	t.jsonFlag(c)
	return c
}

func (t *tool) hsm(ctx context.Context, login string) error {
	client, err := t.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	var hsms []control.HSMStatus
	if login != "" {
		hsms, err = client.Login(ctx, login)
	} else {
		hsms, err = client.HSM(ctx)
	}
	if errors.Is(err, control.ErrUnreachable) {
		hsms, err = t.hsmWithoutDaemon(ctx, login, err)
	}
	if err != nil {
		return err
	}
	if t.json {
		err = t.printJSON(control.List[control.HSMStatus](hsms))
	} else {
		err = t.printHSMs(hsms)
	}
	if err != nil || login == "" {
		return err
	}
	i := slices.IndexFunc(hsms, func(h control.HSMStatus) bool { return h.Name == login })
	if i < 0 || !hsms[i].Connected {
		return failed("the login to HSM %s did not succeed", login)
	}
	return nil
}

// hsmWithoutDaemon logs in to the tokens itself, under the daemon's record of
// logins, where that is possible for the caller and no daemon runs. Otherwise
// the error is that the daemon cannot be reached.
func (t *tool) hsmWithoutDaemon(ctx context.Context, login string, unreachable error) ([]control.HSMStatus, error) {
	cfg, err := t.loadAsDaemon()
	if err != nil {
		return nil, unreachable // not the daemon's machine, or not for this caller
	}
	hsms, err := daemon.LookAtHSMs(ctx, cfg, login, fmt.Sprintf("uid %d", os.Getuid()))
	if _, ok := errors.AsType[*control.Error](err); ok {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w; and byokctl cannot look at the tokens itself: %v", unreachable, err)
	}
	fmt.Fprintln(t.stderr, "byokd does not run: byokctl has logged in itself")
	return hsms, nil
}

func (t *tool) printHSMs(hsms []control.HSMStatus) error {
	if len(hsms) == 0 {
		fmt.Fprintln(t.out, "no HSM in byokd.toml")
	}
	for i, h := range hsms {
		if i > 0 {
			fmt.Fprintln(t.out)
		}
		fmt.Fprintf(t.out, "%s: %s\n", h.Name, h.State)
		w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
		field := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "  %s\t%s\n", name, oneLine(value))
			}
		}
		field("module", h.Module)
		field("library", string(h.Library))
		field("token", string(h.TokenLabel))
		field("serial", string(h.TokenSerial))
		field("model", string(h.TokenModel))
		field("firmware", string(h.TokenFirmware))
		field("algorithm", string(h.Algorithm))
		for _, p := range h.Proofs {
			field("self-test", p.Algorithm+", "+p.Route+": "+p.Outcome)
		}
		field("error", string(h.Error))
		if h.LoginBlocked != "" {
			field("login", "blocked: "+string(h.LoginBlocked)+"; when the PIN is right: byokctl hsm --login "+h.Name)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}
