package daemon

import (
	"cmp"
	"net/url"
	"slices"
	"strings"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/control"
)

// A Destination is where byokd connects to for some of its groups.
type Destination struct {
	Host     string               `json:"host"`
	Port     string               `json:"port"`
	Service  string               `json:"service"` // kms, events, sts, tagging, servicequotas
	Region   string               `json:"region"`
	Required bool                 `json:"required"` // false: missed without harm
	Override bool                 `json:"override"` // from byokd.toml or the environment, not AWS's own
	Groups   control.List[string] `json:"groups"`
}

// Destinations returns where byokd connects to for groups of a configuration,
// over TCP, those that it needs first. What a credential's own source connects
// to is not among them: byokd does not know it.
func Destinations(cfg *config.Config, groups []*config.Group) []Destination {
	c := cloud.New(configuredCloud(cfg))
	type place struct{ service, region string }
	found := make(map[place]*Destination)
	add := func(service, region string, required bool, group string) {
		p := place{service, region}
		d := found[p]
		if d == nil {
			d = &Destination{Service: service, Region: region}
			var endpoint string
			endpoint, d.Override = c.Endpoint(service, region)
			u, err := url.Parse(endpoint)
			if err != nil || u.Host == "" {
				return // AWS has no such endpoint
			}
			d.Host, d.Port = u.Hostname(), cmp.Or(u.Port(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
			found[p] = d
		}
		d.Required = d.Required || required
		if !slices.Contains(d.Groups, group) {
			d.Groups = append(d.Groups, group)
		}
	}
	for _, g := range groups {
		add(cloud.ServiceKMS, g.AWS.Region, true, g.Name)
		add(cloud.ServiceTagging, g.AWS.Region, false, g.Name)
		if cfg.AWS.Quotas.FromServiceQuotas {
			add(cloud.ServiceQuotas, g.AWS.Region, false, g.Name)
		}
		// STS gives the role; without one it only names the account.
		add(cloud.ServiceSTS, g.AWS.Region, cfg.Credentials[g.Credential].RoleARN != "", g.Name)
		if !cfg.Events.Enabled {
			continue
		}
		region := cloud.BusRegion(cfg.Events.Bus, cmp.Or(cfg.Events.Region, g.AWS.Region))
		add(cloud.ServiceEvents, region, true, g.Name)
		if credential := cmp.Or(cfg.Events.Credential, g.Credential); cfg.Credentials[credential].RoleARN != "" {
			add(cloud.ServiceSTS, region, true, g.Name)
		}
	}
	var list []Destination
	for _, d := range found {
		slices.Sort(d.Groups)
		list = append(list, *d)
	}
	slices.SortFunc(list, func(a, b Destination) int {
		if a.Required != b.Required {
			if a.Required {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.Region, b.Region), strings.Compare(a.Service, b.Service))
	})
	return list
}
