package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

const (
	noGroups = "no groups; put a file into groups_dir, for example groups.d/payments.toml"

	// manyHealthy is how many healthy groups are shown one by one unless they are
	// asked for.
	manyHealthy = 20

	// inVain is for how long byokd may try to send events, as with the rule
	// ByokdEventsStuck of docs/alerts, or to look for the keys of a group that has none,
	// before a person is called.
	inVain = time.Hour
)

func (t *tool) statusCommand() *cobra.Command {
	var all, check bool
	c := &cobra.Command{
		Use:   "status [GROUP...]",
		Short: "Show the groups, worst first",
		Long: `Show the groups, worst first: state, active generation and key, last and next
rotation, expiry, problems; above them what is wrong with the daemon as a whole.
Many healthy groups are counted, not listed, and on a terminal the list ends with
the screen; --all shows all.

With --check only what byokd cannot mend by itself is shown, rotations that are
overdue, and events that have not reached EventBridge for an hour, and the exit
status is 1 if there is any: for timers and monitoring.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			if check {
				return t.statusCheck(c.Context(), groups)
			}
			return t.status(c.Context(), groups, all)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "list all groups, however many and however healthy")
	c.Flags().BoolVar(&check, "check", false, "show only what needs a person, and exit with 1 if anything does")
	t.jsonFlag(c)
	c.MarkFlagsMutuallyExclusive("check", "json")
	return c
}

func (t *tool) status(ctx context.Context, names []string, all bool) error {
	client, err := t.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	if t.json {
		status, err := client.StatusJSON(ctx, names...)
		if err != nil {
			return err
		}
		return t.printRaw(status)
	}
	var groups []control.GroupStatus
	if all || len(names) > 0 {
		groups, err = client.Status(ctx, names...)
	} else {
		groups, err = overview(ctx, client)
	}
	if err != nil {
		return err
	}
	daemon, err := client.Daemon(ctx)
	if err != nil {
		return err
	}
	s := newScreen(t.out)
	return s.status(groups, notes(daemon, control.BuildVersion(version)), daemon.Host, all || len(names) > 0)
}

// overview returns all groups as they are shown where healthy ones are counted.
func overview(ctx context.Context, client *control.Client) ([]control.GroupStatus, error) {
	o, err := client.Overview(ctx, manyHealthy)
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.Usage {
		return client.Status(ctx) // of an older byokd, which was not restarted yet
	}
	return o.All(), err
}

// status prints groups, worst first as they come, with notes on the daemon.
func (s screen) status(groups []control.GroupStatus, notes []string, host string, all bool) error {
	common := control.FindCommon(groups)
	for _, p := range common {
		notes = append(notes, p.String())
	}
	var head strings.Builder
	if len(groups) > 0 {
		next := ""
		if g := nextGroup(groups); g.Group != "" {
			next = fmt.Sprintf("; next rotation %s, %s", oneLine(g.Group), minute(g.NextRotation))
		}
		fmt.Fprintln(&head, s.wrap(s.paint(bold, host+":")+" "+s.counts(groups)+next, 0))
	}
	for _, n := range notes {
		fmt.Fprintln(&head, s.paint(red, "!"), s.wrap(oneLine(n), 2))
	}
	if head.Len() > 0 {
		fmt.Fprintln(&head)
	}
	if len(groups) == 0 {
		fmt.Fprintln(&head, noGroups)
	}
	if _, err := fmt.Fprint(s, head.String()); err != nil || len(groups) == 0 {
		return err
	}
	listed := groups
	if !all {
		// Below are the table's header, a line about the rest, and the prompt.
		listed = s.worst(groups, common, s.height-strings.Count(head.String(), "\n")-5)
	}
	if len(listed) > 0 {
		table := newTable("GROUP", "STATE", "ACTIVE", "KEY ID", "LAST ROTATION", "NEXT ROTATION", "EXPIRES")
		table.optional = []int{3, 4, 2}
		for _, g := range listed {
			table.row(oneLine(g.Group), g.State, number(g.Active.Generation), text(g.Active.KeyID),
				minute(g.LastRotation), minute(g.NextRotation), expires(g))
			for _, p := range common.Others(g) {
				table.note(p.String())
			}
		}
		if err := table.printOn(s); err != nil {
			return err
		}
	}
	if left := groups[len(listed):]; len(left) > 0 {
		if len(listed) > 0 {
			fmt.Fprintln(s)
		}
		fmt.Fprintln(s, s.wrap("not listed: "+s.counts(left)+"; byokctl status --all lists them", 0))
	}
	return nil
}

// worst is what is listed unless all are asked for: groups that are not healthy,
// on a terminal as many as lines allow, and healthy ones where they are few.
func (s screen) worst(groups []control.GroupStatus, common control.CommonProblems, lines int) []control.GroupStatus {
	healthy := 0
	for _, g := range groups {
		if isHealthy(g) {
			healthy++
		}
	}
	listed := 0
	for _, g := range groups {
		if isHealthy(g) && healthy > manyHealthy {
			break
		}
		lines--
		for _, p := range common.Others(g) {
			lines -= 1 + strings.Count(s.wrap(oneLine(p.String()), 2), "\n")
		}
		if s.live && listed > 0 && lines < 0 {
			break
		}
		listed++
	}
	return groups[:listed]
}

func isHealthy(g control.GroupStatus) bool { return g.Healthy() }

// counts says how many groups are in which state.
func (s screen) counts(groups []control.GroupStatus) string {
	n := make(map[string]int)
	var order []string
	for _, g := range groups {
		if n[g.State]++; n[g.State] == 1 {
			order = append(order, g.State)
		}
	}
	var parts []string
	for _, state := range order {
		parts = append(parts, s.paint(stateColor(state), fmt.Sprintf("%d %s", n[state], state)))
	}
	if len(groups) == 1 {
		return "1 group: " + parts[0]
	}
	return fmt.Sprintf("%d groups: %s", len(groups), strings.Join(parts, ", "))
}

// nextGroup is the group that rotates next; one without a name: none does.
func nextGroup(groups []control.GroupStatus) (next control.GroupStatus) {
	for _, g := range groups {
		if !g.NextRotation.IsZero() && (next.Group == "" || g.NextRotation.Before(next.NextRotation.Time)) {
			next = g
		}
	}
	return next
}

func expires(g control.GroupStatus) string {
	if g.Active.Generation != nil && g.Active.ValidTo.IsZero() {
		return "never"
	}
	return minute(g.Active.ValidTo)
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

// triedInVain reports whether byokd has had a problem for too long.
func triedInVain(p control.Problem) bool {
	return !p.Since.IsZero() && time.Since(p.Since.Time) > inVain
}

// alarms returns what byokd cannot mend by itself. What it can, such as a network
// that is away, is in here once it has made a rotation overdue, or has been tried in
// vain for events or for the first key of a group.
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
	for _, p := range d.Problems {
		switch p.Code {
		case "database", "groups-dir": // of all groups, and told where there is none too
			found = append(found, p.Code+": "+p.Message)
		}
	}
	// What groups have in common is told once.
	told := make(map[string]bool)
	for _, g := range groups {
		for _, p := range g.Problems {
			switch {
			case told[p.Message]:
			case p.Code == "hsm", // a module that cannot be loaded; a token that is away comes back
				p.Code == "events" && triedInVain(p):
				told[p.Message] = true
				found = append(found, p.Code+": "+p.Message)
			}
		}
	}
	for _, g := range groups {
		if g.State == control.GroupExpired {
			found = append(found, fmt.Sprintf("%s: expired: the active key's material was valid to %s", g.Group, minute(g.Active.ValidTo)))
		}
		for _, p := range g.Problems {
			switch p.Code {
			case "invalid", "overdue", "discarded", "event-parked", "hook-failed",
				"alias": // somebody else's, so that the group gets no key
			case "pending": // of a group that has no key nothing is overdue for as long as overdue_after
				if g.Active.Generation != nil || !triedInVain(p) {
					continue
				}
			case "waiting-use": // byokd retires the key when it is of no use any more
				continue
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
	notes := d.Notes()
	if d.Version.Version != own.Version {
		notes = append(notes, fmt.Sprintf("byokd is version %s and byokctl %s; restart byokd to have it take over", d.Version.Version, own.Version))
	}
	return notes
}
