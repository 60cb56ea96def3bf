package main

import (
	"context"
	"fmt"
	"slices"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) syncCommand() *cobra.Command {
	var (
		request                       control.SyncRequest
		generation                    int
		keyID                         string
		noPolicy, noImport, yes, wait bool
	)
	c := &cobra.Command{
		Use:   "sync GROUP",
		Short: "Make AWS agree with a group's definition",
		Long: `Make AWS agree with a group's definition: the key policy, description and tags of
one generation, and its key material, which is imported again. Prints the ID of
the job.`,
		Args:              exactlyOne("GROUP"),
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, args []string) error {
			request.Group = args[0]
			request.KeyID = control.String(keyID)
			request.ImportMaterial = !noImport
			request.UpdatePolicy = !noPolicy
			if c.Flags().Changed("generation") {
				request.Generation = &generation
			}
			switch {
			case request.Generation != nil && generation < 0:
				return usage("there is no generation %d", generation).hint("byokctl keys %s", request.Group)
			case request.Generation != nil && keyID != "":
				return usage("give --generation or --key-id, not both")
			case request.DeleteMaterial && request.Generation == nil && keyID == "":
				return usage("--delete-material needs --generation or --key-id").hint("byokctl keys %s, which lists both", request.Group)
			}
			ctx := c.Context()
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			if request.DeleteMaterial {
				if err := t.confirmDelete(ctx, client, request, yes); err != nil {
					return err
				}
			}
			job, err := client.Sync(ctx, request)
			if err != nil {
				return err
			}
			return t.finish(ctx, client, []control.Job{job}, wait, true)
		},
	}
	c.Flags().IntVar(&generation, "generation", 0, "the generation `N`, not the active one")
	c.Flags().StringVar(&keyID, "key-id", "", "the generation whose KMS key has this `ID`")
	c.Flags().BoolVar(&request.DeleteMaterial, "delete-material", false, "delete the key material in KMS; imports nothing")
	c.Flags().BoolVar(&noPolicy, "no-policy", false, "leave the key policy as it is")
	c.Flags().BoolVar(&noImport, "no-import", false, "import no key material")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before --delete-material")
	waitFlag(c, &wait)
	t.jsonFlag(c)
	return c
}

// confirmDelete says what will stop working and, unless yes, asks.
func (t *tool) confirmDelete(ctx context.Context, client *control.Client, r control.SyncRequest, yes bool) error {
	keys, err := client.Keys(ctx, r.Group)
	if err != nil {
		return err
	}
	i := -1
	for n, k := range keys {
		// Of several generations in one KMS key byokd takes the current one.
		later := i < 0 || k.State != "pre-active" && k.State != "destroyed"
		if r.Generation != nil && k.Generation == *r.Generation || r.KeyID != "" && (k.KeyID == r.KeyID || k.KeyARN == r.KeyID) && later {
			i = n
		}
	}
	if i < 0 {
		return usage("group %s has no such generation", r.Group).hint("byokctl keys %s", r.Group)
	}
	groups, err := client.Status(ctx, r.Group)
	if err != nil {
		return err
	}
	k := keys[i]
	fmt.Fprintf(t.stderr, "The key material of generation %d of %s, KMS key %s, will be deleted in KMS.\n", k.Generation, r.Group, text(k.KeyID))
	if n := sharing(keys, k); n > 1 {
		fmt.Fprintf(t.stderr, "One missing material takes the whole KMS key down, with all its %d generations.\n", n)
	}
	fmt.Fprintln(t.stderr, "From then on nothing that was encrypted under this key can be decrypted, by anybody,")
	switch {
	case k.HSMLabel == "":
		fmt.Fprintln(t.stderr, "and byokd cannot bring it back: it does not have this key in the HSM.")
	case slices.ContainsFunc(keys, func(other control.Key) bool { return other.State == "active" && other.KeyID == k.KeyID }):
		fmt.Fprintf(t.stderr, "nor anything encrypted through %s, which points at it. To bring it back: byokctl sync %s --generation %d\n", alias(groups), r.Group, k.Generation)
	default:
		fmt.Fprintf(t.stderr, "until it is brought back: byokctl sync %s --generation %d\n", r.Group, k.Generation)
	}
	if yes {
		return nil
	}
	return t.confirm("Delete it?")
}

// sharing counts the generations that are material of a key's KMS key.
func sharing(keys []control.Key, k control.Key) (n int) {
	for _, other := range keys {
		if other.KeyID == k.KeyID && other.KeyID != "" && other.State != "destroyed" {
			n++
		}
	}
	return n
}

// alias names the alias of a group.
func alias(groups []control.GroupStatus) string {
	if len(groups) == 1 && groups[0].Alias != "" {
		return string(groups[0].Alias)
	}
	return "the alias"
}
