package main

import (
	"fmt"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

// shortDigest is how much of a definition's digest a table shows.
const shortDigest = 12

func (t *tool) auditCommand() *cobra.Command {
	var filter control.AuditFilter
	c := &cobra.Command{
		Use:   "audit",
		Short: "Show who or what asked, when, and what was done",
		Long: `Show the audit trail, newest first: who or what asked (a user through byokctl, the
owner of a request file, else the trigger), what was asked for and what was done
for it, and the digest of the definition in force. Where a definition came into
force there is a line "take definition" with its digest.`,
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if filter.Limit < 0 {
				return usage("--limit %d is not a number from 0", filter.Limit)
			}
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			entries, err := client.Audit(c.Context(), filter)
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(control.List[control.AuditEntry](entries))
			}
			if len(entries) == 0 {
				fmt.Fprintln(t.out, "no entries")
				return nil
			}
			table := newTable("AT", "WHO", "WHAT", "GROUP", "JOB", "DEFINITION")
			table.optional = []int{4, 5}
			for _, a := range entries {
				definition := string(a.Definition)
				table.row(a.At.String(), oneLine(a.Actor), oneLine(a.Action), text(a.Group), text(a.JobID), text(control.String(definition[:min(shortDigest, len(definition))])))
				if a.Detail != "" {
					table.note(string(a.Detail))
				}
			}
			return table.print(t.out)
		},
	}
	c.Flags().StringVar(&filter.Group, "group", "", "only that of group `G`")
	c.Flags().StringVar(&filter.JobID, "job", "", "only that of job `ID`")
	c.Flags().IntVar(&filter.Limit, "limit", 50, "the newest `N`; 0: all")
	_ = c.RegisterFlagCompletionFunc("group", t.completeGroups)
	t.jsonFlag(c)
	return c
}
