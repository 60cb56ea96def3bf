package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"byokd/daemon"
	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) firewallCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "firewall [GROUP...]",
		Short: "Print the endpoints that byokd must reach",
		Long: `Print the endpoints that byokd must reach for the GROUPs, or for all groups, as
byokd.toml and the group files have them; no daemon is asked. All are TCP, outbound;
byokd accepts no connection from the network.

Endpoints that are not required are missed without harm: without tagging, keys are
found by a listing; without STS, the account is known from KMS's answers; without
Service Quotas, which is there with from_service_quotas only, AWS's default quotas
are kept to.`,
		ValidArgsFunction: t.completeGroups,
		RunE:              func(_ *cobra.Command, names []string) error { return t.firewall(names) },
	}
	t.jsonFlag(c)
	return c
}

func (t *tool) firewall(names []string) error {
	groups, err := t.groups(names)
	if err != nil {
		return err
	}
	cfg := groups.cfg
	destinations := daemon.Destinations(cfg, groups.list)
	if t.json {
		return t.printJSON(control.List[daemon.Destination](destinations))
	}
	table := newTable("HOST", "PORT", "SERVICE", "REGION", "REQUIRED", "GROUPS")
	for _, d := range destinations {
		required := "yes"
		if !d.Required {
			required = "no"
		}
		shown := strings.Join(d.Groups[:min(len(d.Groups), 3)], ", ")
		if more := len(d.Groups) - 3; more > 0 {
			shown += fmt.Sprintf(" and %d more", more)
		}
		table.row(d.Host, d.Port, d.Service, d.Region, required, shown)
	}
	if err := table.print(t.out); err != nil {
		return err
	}
	fmt.Fprint(t.out, "\nBesides: DNS and NTP. A proxy in HTTPS_PROXY of byokd's environment is what must be\nreached then; the names above are what it must let through.\n")
	for _, name := range slices.Sorted(maps.Keys(cfg.Credentials)) {
		switch c := cfg.Credentials[name]; {
		case c.CredentialProcess != "":
			fmt.Fprintf(t.out, "[credentials.%s] credential_process connects by itself: IAM Roles Anywhere to rolesanywhere.REGION.amazonaws.com, 443.\n", name)
		case c.Profile != "" || c.DefaultChain:
			fmt.Fprintf(t.out, "[credentials.%s] may connect to what its AWS configuration names: STS, IAM Identity Center, the EC2 metadata service.\n", name)
		}
	}
	return nil
}
