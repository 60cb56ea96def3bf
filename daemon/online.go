package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/lifecycle"
)

// A Finding is one thing that `byokctl check --online` looked at.
type Finding struct {
	Subject string `json:"subject"` // what was looked at, for a person
	State   string `json:"state"`   // "ok", "warning", "failed", "unknown"
	Message string `json:"message"` // what was found, and what to do
}

// The states of a finding.
const (
	FindingOK      = "ok"
	FindingWarning = "warning"
	FindingFailed  = "failed"
	FindingUnknown = "unknown"
)

// clockLimit is how far this machine's clock may be from AWS's before it is
// worth a word: AWS refuses signatures that are 5 minutes off.
const clockLimit = 30 * time.Second

// CheckOnline looks, without changing anything, whether AWS is as byokd needs it
// for the groups: endpoints, TLS and clock, credentials and who they are, event
// buses, permissions and key policies. It reports each finding as it comes.
// Each credential and Region is tried once, on the first of its groups that has
// a key.
func CheckOnline(ctx context.Context, cfg *config.Config, groups []*config.Group, report func(Finding)) {
	settings := configuredCloud(cfg)
	settings.FromServiceQuotas = false // it is asked here, once, and what comes of it is a finding
	o := online{ctx: ctx, cfg: cfg, cloud: cloud.New(settings), report: report}
	defer o.cloud.Close()
	reached := o.endpoints(Destinations(cfg, groups))
	type place struct{ credential, region string }
	places := make(map[place][]*config.Group)
	var order []place
	for _, g := range groups {
		p := place{g.Credential, g.AWS.Region}
		if places[p] == nil {
			order = append(order, p)
		}
		places[p] = append(places[p], g)
	}
	for _, p := range order {
		if reached[cloud.ServiceKMS+" "+p.region] {
			o.place(p.credential, p.region, places[p])
		}
	}
	o.buses(groups)
}

type online struct {
	ctx    context.Context
	cfg    *config.Config
	cloud  *cloud.Cloud
	report func(Finding)
}

func (o *online) found(state, subject, format string, args ...any) {
	o.report(Finding{Subject: subject, State: state, Message: fmt.Sprintf(format, args...)})
}

// endpoints looks at what must be reachable, and returns what is.
func (o *online) endpoints(destinations []Destination) map[string]bool {
	reached := make(map[string]bool)
	for _, d := range destinations {
		subject := fmt.Sprintf("%s endpoint %s:%s", d.Service, d.Host, d.Port)
		before := time.Now()
		date, err := o.cloud.Reach(o.ctx, d.Service, d.Region)
		proxy, _ := o.cloud.ProxyTo(d.Service, d.Region) // what is wrong with it, Reach says
		answers := "answers"
		if proxy != "" {
			answers = "answers through proxy " + proxy
		}
		if errors.Is(err, cloud.ErrUnreachable) {
			switch {
			case proxy != "":
				err = fmt.Errorf("%w (through proxy %s)", err, proxy)
			case !d.Override:
				err = fmt.Errorf("%w (without a proxy: where this runs HTTPS_PROXY is not set, or NO_PROXY names the host)", err)
			}
		}
		switch {
		case err != nil && !d.Required:
			o.found(FindingWarning, subject, "%v (byokd can do without it)", err)
			continue
		case err != nil:
			o.found(FindingFailed, subject, "%v", err)
			continue
		}
		reached[d.Service+" "+d.Region] = true
		// A Date has whole seconds and is of some moment of the round trip.
		skew := date.Sub(before)
		if skew > 0 {
			skew = max(0, skew-time.Since(before))
		}
		switch {
		case date.IsZero():
			o.found(FindingWarning, subject, "answers without a Date, so not as AWS does: look for a proxy or captive portal in between")
		case skew.Abs() > 5*time.Minute:
			o.found(FindingFailed, subject, "the clock of this machine is wrong by %v, and AWS refuses requests: set it, and let NTP keep it", skew.Abs().Round(time.Second))
		case skew.Abs() > clockLimit:
			o.found(FindingWarning, subject, "%s; the clock of this machine is wrong by %v: let NTP keep it", answers, skew.Abs().Round(time.Second))
		case d.Override && d.Service == cloud.ServiceKMS:
			o.found(FindingOK, subject, "%s; it is not AWS's own but from byokd.toml or the environment, and HSM keys are wrapped under what it hands out", answers)
		case d.Override:
			o.found(FindingOK, subject, "%s; it is not AWS's own but from byokd.toml or the environment", answers)
		default:
			o.found(FindingOK, subject, "%s", answers)
		}
	}
	return reached
}

// place looks at one credential in one Region.
func (o *online) place(credential, region string, groups []*config.Group) {
	subject := fmt.Sprintf("credential %s in %s", credential, region)
	kms, err := o.cloud.KMS(credential, region)
	if err != nil {
		o.found(FindingFailed, subject, "%v", err)
		return
	}
	caller, err := kms.Caller(o.ctx)
	switch account := o.cfg.Credentials[credential].Account; {
	case errors.Is(err, cloud.ErrUnreachable):
		o.found(FindingWarning, subject, "who it is cannot be asked: %v", err)
	case err != nil:
		o.found(FindingFailed, subject, "%v", err)
		return
	case account != "" && account != caller.Account:
		o.found(FindingFailed, subject, "it is %s of account %s, but account = %q is set for it: put in an access key of that account, or correct the line", caller.ARN, caller.Account, account)
		return
	default:
		o.found(FindingOK, subject, "it is %s", caller.ARN)
	}
	quota := cmp.Or(o.cfg.AWS.Quotas.GetParametersForImport, 1)
	if o.cfg.AWS.Quotas.FromServiceQuotas {
		quota = o.serviceQuotas(kms, subject, quota)
	}
	if n := len(groups); n > 1 {
		o.found(FindingOK, fmt.Sprintf("quota in %s", region), "%d groups share GetParametersForImport with %g a second: rotating all of them takes %v",
			n, quota, (time.Duration(float64(n) / quota * float64(time.Second))).Round(time.Second))
	}

	probe := cloud.Probe{Context: map[string]string{lifecycle.CanaryContext: groups[0].Name},
		Tags: map[string]string{lifecycle.TagGroup: groups[0].Name}}
	for i, g := range groups {
		if i >= ownedLooks && probe.KeyID != "" {
			o.found(FindingUnknown, subject, "of %d groups, the aliases of the first %d were looked at; byokctl status tells of the others", len(groups), i)
			break
		}
		key, err := kms.DescribeKey(o.ctx, g.AWS.Alias)
		if err != nil {
			if !errors.Is(err, cloud.ErrNotFound) {
				o.found(FindingFailed, "group "+g.Name, "%v", err)
			}
			continue
		}
		o.owned(kms, g, key)
		if probe.KeyID == "" && key.Origin == "EXTERNAL" && key.State == "Enabled" {
			probe.KeyID, probe.Alias = key.ID, g.AWS.Alias
			probe.Context[lifecycle.CanaryContext], probe.Tags[lifecycle.TagGroup] = g.Name, g.Name
		}
	}
	o.permissions(kms, subject, groups, probe)
	for _, g := range groups {
		if g.Policy == nil {
			continue
		}
		if cloud.LocksOut(string(g.Policy), caller.ARN) {
			o.found(FindingFailed, "key policy of group "+g.Name, "%s lets neither %s nor the account's IAM policies change it again (kms:PutKeyPolicy), so KMS refuses it: "+
				"add a statement for the principal arn:aws:iam::%s:root, as AWS's default key policy has", g.AWS.PolicyFile, caller.ARN, caller.Account)
		} else {
			o.found(FindingOK, "key policy of group "+g.Name, "byokd stays able to change it")
		}
	}
}

// serviceQuotas looks whether Service Quotas tells the quotas, and returns that of
// imports.
func (o *online) serviceQuotas(kms *cloud.KMS, subject string, configured float64) float64 {
	told, err := kms.ServiceQuotas(o.ctx)
	perSecond, ok := told[cloud.ImportAction]
	_, given := o.cfg.GivenQuotas()["get_parameters_for_import"]
	switch {
	case err != nil:
		o.found(FindingWarning, subject, "%v (without it byokd keeps to AWS's defaults, and to what [aws.quotas] sets)", err)
	case !ok:
		o.found(FindingWarning, subject, "Service Quotas tells %d request quotas of KMS, but not that of GetParametersForImport: byokd keeps to %g a second", len(told), configured)
	case given && perSecond != configured:
		o.found(FindingOK, subject, "Service Quotas tells %g GetParametersForImport a second; [aws.quotas] sets %g, which comes first", perSecond, configured)
	default:
		o.found(FindingOK, subject, "Service Quotas tells %g GetParametersForImport a second", perSecond)
		return perSecond
	}
	return configured
}

// ownedLooks is of how many groups of a credential and Region the aliases are looked
// at: two requests each, one after the other.
const ownedLooks = 100

// owned warns of an alias at a key that is not the group's, as far as tags tell: a
// new group gets no key then.
func (o *online) owned(kms *cloud.KMS, g *config.Group, key cloud.Key) {
	if key.ID == g.AWS.ActiveKeyID {
		return
	}
	tags, err := kms.KeyTags(o.ctx, key.ID)
	if owner := tags[lifecycle.TagGroup]; err != nil || owner == g.Name || owner != "" && owner == g.AWS.PreviousName {
		return
	}
	o.found(FindingWarning, "group "+g.Name, "%s points at KMS key %s, which has no tag %s = %s: unless it is the group's, byokd makes no key; "+
		"to take it over, write active_key_id = %q under [aws] in the group's file; otherwise choose another alias", g.AWS.Alias, key.ID, lifecycle.TagGroup, g.Name, key.ID)
}

// permissions tries what the groups' definitions ask for.
func (o *online) permissions(kms *cloud.KMS, subject string, groups []*config.Group, probe cloud.Probe) {
	var wanted []string
	for _, g := range groups {
		wanted = append(wanted, operations(g)...)
	}
	slices.Sort(wanted)
	var had, untried []string
	for _, operation := range slices.Compact(wanted) {
		switch err := kms.Probe(o.ctx, operation, probe); {
		case err == nil:
			had = append(had, operation)
		case errors.Is(err, cloud.ErrNoProbe):
			untried = append(untried, operation)
		case errors.Is(err, cloud.ErrDenied) && operation == "tag:GetResources":
			o.found(FindingWarning, subject, "%v (without it byokd lists keys instead, with kms:ListKeys)", err)
		case errors.Is(err, cloud.ErrDenied):
			o.found(FindingFailed, subject, "%v", err)
		default:
			o.found(FindingWarning, subject, "whether %s is permitted is not known: %v", operation, err)
		}
	}
	if len(had) > 0 {
		o.found(FindingOK, subject, "may %s", strings.Join(had, ", "))
	}
	if len(untried) > 0 {
		why := ""
		if probe.KeyID == "" {
			why = "; more can be tried once a group has a key"
		}
		o.found(FindingUnknown, subject, "not tried, since only doing it would tell: %s; byokctl iam-policy prints what to grant%s", strings.Join(untried, ", "), why)
	}
}

// buses looks whether the event buses are there.
func (o *online) buses(groups []*config.Group) {
	if !o.cfg.Events.Enabled {
		return
	}
	seen := make(map[[2]string]bool)
	for _, g := range groups {
		credential, region := cmp.Or(o.cfg.Events.Credential, g.Credential), cloud.BusRegion(o.cfg.Events.Bus, cmp.Or(o.cfg.Events.Region, g.AWS.Region))
		if seen[[2]string{credential, region}] {
			continue
		}
		seen[[2]string{credential, region}] = true
		subject := fmt.Sprintf("event bus %s in %s", o.cfg.Events.Bus, region)
		bus, err := o.cloud.Bus(credential, region, o.cfg.Events.Bus)
		if err == nil {
			err = bus.Check(o.ctx)
		}
		switch {
		case errors.Is(err, cloud.ErrDenied):
			o.found(FindingWarning, subject, "%v; events are sent without that look, and dropped by AWS where the bus does not exist", err)
		case err != nil:
			o.found(FindingFailed, subject, "%v", err)
		default:
			o.found(FindingOK, subject, "exists")
		}
	}
}
