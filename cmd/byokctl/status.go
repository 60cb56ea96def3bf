package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) statusCommand() *cobra.Command {
	check := false
	c := &cobra.Command{
		Use:   "status [GROUP...]",
		Short: "Show the groups, worst first",
		Long: `Show the groups, worst first: state, active generation and key, last and next
rotation, expiry, problems; above them what is wrong with the daemon as a whole.

With --check only what byokd cannot mend by itself is shown, and rotations that
are overdue, and the exit status is 1 if there is any: for timers and monitoring.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			if check {
				return t.statusCheck(c.Context(), groups)
			}
			return t.status(c.Context(), groups)
		},
	}
	t.jsonFlag(c)
	c.Flags().BoolVar(&check, "check", false, "show only what needs a person, and exit with 1 if anything does")
	c.MarkFlagsMutuallyExclusive("check", "json")
	return c
}

func (t *tool) status(ctx context.Context, names []string) error {
	client, err := t.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	groups, err := client.Status(ctx, names...)
	if err != nil {
		return err
	}
	if t.json {
		return t.printJSON(control.List[control.GroupStatus](groups))
	}
	daemon, err := client.Daemon(ctx)
	if err != nil {
		return err
	}
	printNotes(t.out, notes(daemon, control.BuildVersion(version)))
	if len(groups) == 0 {
		fmt.Fprintln(t.out, "no groups; put a file into groups_dir, for example groups.d/payments.toml")
		return nil
	}
	table := newTable("GROUP", "STATE", "ACTIVE", "KEY ID", "LAST ROTATION", "NEXT ROTATION", "EXPIRES")
	for _, g := range groups {
		expires := minute(g.Active.ValidTo)
		if g.Active.Generation != nil && g.Active.ValidTo.IsZero() {
			expires = "never"
		}
		table.row(g.Group, g.State, number(g.Active.Generation), text(g.Active.KeyID),
			minute(g.LastRotation), minute(g.NextRotation), expires)
		for _, p := range g.Problems {
			note := p.Code + ": " + p.Message
			if !p.Since.IsZero() {
				note += " (since " + minute(p.Since) + ")"
			}
			table.note(note)
		}
	}
	return table.print(t.out)
}

// statusCheck fails where a person must act. It prints nothing else.
func (t *tool) statusCheck(ctx context.Context, names []string) error {
	client, err := t.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	groups, err := client.Status(ctx, names...)
	if err != nil {
		return err
	}
	daemon, err := client.Daemon(ctx)
	if err != nil {
		return err
	}
	found := alarms(daemon, groups)
	for _, a := range found {
		fmt.Fprintln(t.out, a)
	}
	if len(found) > 0 {
		return failed("%d of these need a person", len(found)).hint("byokctl status, which shows all of it")
	}
	return nil
}

// alarms returns what byokd cannot mend by itself. What it can, such as a network
// that is away, is in here once it has made a rotation overdue.
func alarms(d control.DaemonStatus, groups []control.GroupStatus) []string {
	var found []string
	for _, h := range d.HSMs {
		if h.LoginBlocked != "" {
			found = append(found, fmt.Sprintf("HSM %s: no login: %s", h.Name, h.LoginBlocked))
		}
	}
	if !d.LastReload.OK {
		found = append(found, fmt.Sprintf("byokd.toml could not be reloaded: %s", d.LastReload.Error))
	}
	for _, g := range groups {
		if g.State == control.GroupExpired {
			found = append(found, fmt.Sprintf("%s: expired: the active key's material was valid to %s", g.Group, minute(g.Active.ValidTo)))
		}
		for _, p := range g.Problems {
			switch p.Code {
			case "invalid", "overdue", "discarded", "event-parked", "database":
			default:
				if !strings.HasPrefix(p.Code, "waiting-") {
					continue
				}
			}
			found = append(found, fmt.Sprintf("%s: %s: %s", g.Group, p.Code, p.Message))
		}
	}
	return found
}

// notes returns what a person should know of the daemon as a whole.
func notes(d control.DaemonStatus, own control.Version) []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if !d.Designated {
		note("not designated: %s changes nothing in AWS and HSM (designated = false in %s)", d.Host, d.Config)
	}
	if !d.LastReload.OK {
		note("byokd.toml could not be reloaded (%s), what was read before still holds: %s", minute(d.LastReload.At), d.LastReload.Error)
	}
	for _, h := range d.HSMs {
		switch {
		case h.LoginBlocked != "":
			note("HSM %s: no login: %s; when the PIN is right: byokctl hsm --login %s", h.Name, h.LoginBlocked, h.Name)
		case h.Error != "":
			note("HSM %s is %s: %s", h.Name, h.State, h.Error)
		case !h.Connected:
			note("HSM %s is %s", h.Name, h.State)
		}
	}
	if d.Outbox.Pending > 0 || d.Outbox.Parked > 0 {
		note("events not sent: %d waiting, %d parked", d.Outbox.Pending, d.Outbox.Parked)
	}
	for _, e := range d.Endpoints {
		where := ""
		if e.Region != "" {
			where = " in " + string(e.Region)
		}
		note("endpoint of %s%s is overridden: %s", e.Service, where, e.URL)
	}
	if d.Version.Version != own.Version {
		note("byokd is version %s and byokctl %s; restart byokd to have it take over", d.Version.Version, own.Version)
	}
	return notes
}

// printNotes prints the notes with a line below them, if there are any.
func printNotes(w io.Writer, notes []string) {
	for _, n := range notes {
		fmt.Fprintln(w, "!", n)
	}
	if len(notes) > 0 {
		fmt.Fprintln(w)
	}
}
