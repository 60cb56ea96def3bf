package main

import (
	"fmt"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) driftCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "drift [GROUP...]",
		Short: "Compare AWS with what byokd knows and defines, now",
		Long: `Compare AWS with what byokd knows and defines, now, and show what differs: key
state, key material, expiry, key policy, description, tags, alias, and keys that
carry a group's tags and are none of its. It is what drift_check does on schedule;
where a group has drift = "repair", what can be repaired is.

Exit status: 0 where all groups could be compared, whatever differs; 1 where one
could not.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Drift(c.Context(), groups...)
			if err != nil {
				return err
			}
			failed := 0
			for _, d := range list {
				if d.Error != "" {
					failed++
				}
			}
			if t.json {
				err = t.printJSON(control.List[control.Drift](list))
			} else {
				err = t.printDrift(list)
			}
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d of %d groups could not be compared", failed, len(list))
			}
			return err
		},
	}
	t.jsonFlag(c)
	return c
}

func (t *tool) printDrift(list []control.Drift) error {
	table := newTable("GROUP", "DIFFERS", "CHECKED")
	for _, d := range list {
		differs := "-"
		if d.Error == "" {
			differs = fmt.Sprint(len(d.Differences))
		}
		table.row(d.Group, differs, minute(d.CheckedAt))
		if d.Error != "" {
			table.note("not compared: " + string(d.Error))
		}
		for _, diff := range d.Differences {
			table.note(diff.Kind + ": " + diff.Message)
		}
	}
	return table.print(t.out)
}
