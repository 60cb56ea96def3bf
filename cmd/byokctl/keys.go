package main

import (
	"fmt"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) keysCommand() *cobra.Command {
	c := &cobra.Command{
		Use:               "keys GROUP",
		Short:             "Show a group's generations",
		Args:              exactlyOne("GROUP"),
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			keys, err := client.Keys(c.Context(), args[0])
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(control.List[control.Key](keys))
			}
			if len(keys) == 0 {
				fmt.Fprintln(t.out, "no generations yet")
				return nil
			}
			table := newTable("GENERATION", "STATE", "KEY ID", "HSM OBJECT", "CREATED", "VALID TO")
			table.optional = []int{3, 4}
			for _, k := range keys {
				table.row(number(&k.Generation), k.State, text(k.KeyID), text(k.HSMLabel), minute(k.CreatedAt), minute(k.ValidTo))
			}
			return table.print(t.out)
		},
	}
	t.jsonFlag(c)
	return c
}
