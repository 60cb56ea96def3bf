package main

import (
	"context"
	"fmt"
	"io"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status [GROUP...]",
		Short: "Show the groups, worst first",
		Long: `Show the groups, worst first: state, active generation and key, last and next
rotation, expiry, problems; above them what is wrong with the daemon as a whole.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			return t.status(c.Context(), groups)
		},
	}
	t.jsonFlag(c)
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
