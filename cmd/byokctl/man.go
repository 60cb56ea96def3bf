//go:build man

package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// In a build with the tag man, which makes the packages, byokctl can write its
// own man pages, dated by $SOURCE_DATE_EPOCH.
func init() { extra = append(extra, (*tool).manCommand) }

func (t *tool) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages",
		Hidden: true,
		Args:   exactlyOne("folder"),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			root.InitDefaultCompletionCmd(args...)
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "byokd", Manual: "byokd"}, args[0])
		},
	}
}
