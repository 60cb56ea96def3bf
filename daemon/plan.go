package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"byokd/daemon/control"
	"byokd/daemon/lifecycle"
)

// Prices in US dollars a month.
//
// Source: AWS Key Management Service Pricing: each key costs 1, whatever its
// state but pending deletion; each of its first two rotations adds 1.
const (
	keyPrice        = 1.0
	pricedRotations = 2
)

// Plan returns what byokd will do with the named groups, or with all for none.
func (d *Daemon) Plan(ctx context.Context, names []string, rotate bool) ([]control.Plan, error) {
	v, err := d.view(ctx, names...)
	if err != nil {
		return nil, err
	}
	if v.generations, err = d.allGenerations(ctx, names); err != nil {
		return nil, err
	}
	all := len(names) == 0
	if all {
		names = d.groups.names()
	}
	slices.Sort(names)
	plans := []control.Plan{}
	for _, name := range slices.Compact(names) {
		g, ok := d.groups.get(name)
		switch {
		case !ok && all:
			continue // renamed or gone in between
		case !ok:
			return nil, unknownGroup(name)
		}
		plan := d.planOf(g, v, rotate)
		if rotate {
			plan.Notes = append(plan.Notes, d.grantsLeft(ctx, g, plan)...)
		}
		plans = append(plans, plan)
	}
	return plans, nil
}

// grantsLeft says what grants are on the key that a rotation's alias would leave.
func (d *Daemon) grantsLeft(ctx context.Context, g group, p control.Plan) []string {
	i := slices.IndexFunc(p.Actions, func(a control.Action) bool { return a.Kind == string(lifecycle.Rotate) })
	if i < 0 || p.Actions[i].KeyID != "" { // in place, the key and its grants stay
		return nil
	}
	generations, err := d.store.Generations(ctx, g.name)
	if err != nil {
		return []string{fmt.Sprintf("grants were not looked for: %v", err)}
	}
	for _, row := range generations {
		if row.Stage != string(lifecycle.Active) {
			continue
		}
		kms, err := d.kms(g.def.Credential, g.def.AWS.Region)
		var grants []lifecycle.Grant
		if err == nil {
			grants, err = kms.Grants(ctx, row.KeyID)
		}
		switch {
		case err != nil:
			return []string{fmt.Sprintf("whether there are grants on KMS key %s cannot be seen: %v", row.KeyID, err)}
		case len(grants) > 0:
			return []string{fmt.Sprintf("%d grants are on KMS key %s, which the alias would leave, and services that hold them do not follow (grants = %q)",
				len(grants), row.KeyID, g.def.Rotation.Grants)}
		}
	}
	return nil
}

func (d *Daemon) planOf(g group, v *view, rotate bool) control.Plan {
	p := control.Plan{Group: g.name, Account: control.String(d.groups.account(g.name)),
		QuotaPerSecond: d.cfg.Load().AWS.Quotas.GetParametersForImport}
	generations := slices.Clone(v.generations[g.name])
	p.CostNow = monthlyCost(generations, v.now)
	p.CostThen = p.CostNow
	switch {
	case g.def == nil:
		p.Notes = append(p.Notes, "its file was never good: nothing is done with it")
		return p
	case g.gone:
		p.Notes = append(p.Notes, "its file is gone: it is not rotated any more, and its keys are left as they are")
		return p
	case !d.cfg.Load().Designated:
		p.Notes = append(p.Notes, "this is not the designated device: it does nothing of this")
	}
	p.Region = control.String(g.def.AWS.Region)
	p.QuotaPerSecond = d.cloud.ImportRate(g.def.Credential, g.def.AWS.Region)
	def := d.definition(g.def)

	var rotated time.Time
	if active, ok := activeGeneration(generations); ok {
		rotated = active.ActivatedAt
	}
	next, at, _ := d.nextAfter(g, rotated)
	if renewal := d.renewal(g, generations, next); !renewal.at.IsZero() {
		switch {
		case renewal.job == lifecycle.Rotate && (at.IsZero() || renewal.at.Before(at)):
			at = renewal.at
		case renewal.job == lifecycle.Synchronize:
			p.Actions = append(p.Actions, control.Action{At: control.At(renewal.at), Kind: string(lifecycle.Synchronize), Generation: number(generations),
				KeyID:   control.String(keyOf(generations)),
				Message: "import the key material anew, ahead of its end at " + renewal.ends.UTC().Format(time.RFC3339),
				Calls:   []string{"kms:GetParametersForImport", "C_WrapKey", "kms:ImportKeyMaterial"}})
		}
	}
	if first := d.firstDue(g, generations); !first.IsZero() {
		at = v.now
		if g.lookErr != nil {
			p.Notes = append(p.Notes, "byokd cannot look for the group's keys yet, and makes none before it can: byokctl status "+g.name)
		}
	}
	for _, j := range v.open[g.name] {
		waits := ""
		if j.WaitingFor != "" && j.WaitingFor != lifecycle.WaitUse {
			waits = " and waits for a person (" + j.WaitingFor + ")"
		}
		p.Notes = append(p.Notes, fmt.Sprintf("job %s (%s) is open%s: byokctl job %s", j.ID, j.Kind, waits, j.ID))
		if j.Kind == string(lifecycle.Rotate) { // that is the next rotation
			at = v.now
			if j.NextAttempt.After(at) {
				at = j.NextAttempt
			}
		}
	}
	if rotate {
		at = v.now
	}
	if at.IsZero() && d.cfg.Load().Designated {
		p.Notes = append(p.Notes, "no rotation is planned: rotation.enabled is false, or the schedule has no tick")
	} else if !at.IsZero() {
		var action control.Action
		action, generations = rotation(def, generations, at)
		p.Actions = append(p.Actions, action)
	}
	for _, job := range lifecycle.Retirements(def, generations, "", v.now).Jobs {
		p.Actions = append(p.Actions, retirement(job, generations))
		for i := range generations { // so that the cost is that of the end
			if generations[i].Number == job.Generation && job.Request.Retire == lifecycle.RetireDelete {
				generations[i].DeletionDate = job.DueAt
			}
		}
	}
	slices.SortStableFunc(p.Actions, func(a, b control.Action) int { return a.At.Compare(b.At.Time) })
	p.CostThen = monthlyCost(generations, v.now)
	for _, a := range p.Actions {
		if slices.Contains(a.Calls, "kms:GetParametersForImport") {
			p.WaitsForQuota++
		}
	}
	return p
}

// rotation is the rotation of a group at a time, and the generations after it.
func rotation(def lifecycle.Definition, generations []lifecycle.Generation, at time.Time) (control.Action, []lifecycle.Generation) {
	after := slices.Clone(generations)
	fresh := lifecycle.Generation{Group: def.Group, Number: 1, Stage: lifecycle.Active, ActivatedAt: at, KeyID: "a fresh KMS key", HSMID: "new"}
	pre := -1
	for i, g := range after {
		fresh.Number = max(fresh.Number, g.Number+1)
		if g.Stage == lifecycle.PreActive {
			pre = i
		}
	}
	if pre >= 0 { // an earlier rotation left it: it is gone on with
		fresh.Number = after[pre].Number
		after = slices.Delete(after, pre, pre+1)
	}
	a := control.Action{At: control.At(at), Kind: string(lifecycle.Rotate), Generation: fresh.Number}
	a.Calls = []string{"C_GenerateKey"}
	old, ok := activeGeneration(after)
	inPlace := ok && old.Number > 0 && (def.Mode == "in-place" || def.Mode == "auto" && materials(after, old.KeyID) <= lifecycle.MaxRotations)
	switch {
	case inPlace:
		fresh.KeyID = old.KeyID
		a.KeyID = control.String(old.KeyID)
		a.Message = fmt.Sprintf("make generation %d, import it into KMS key %s and rotate that in place", fresh.Number, old.KeyID)
		a.Calls = append(a.Calls, "kms:GetParametersForImport", "C_WrapKey", "kms:ImportKeyMaterial", "kms:RotateKeyOnDemand")
	default:
		a.Message = fmt.Sprintf("make generation %d and import it into a fresh KMS key; %s goes to it", fresh.Number, def.Alias)
		if ok {
			a.Message += " from " + old.KeyID
		}
		a.Calls = append(a.Calls, "kms:CreateKey", "kms:GetParametersForImport", "C_WrapKey", "kms:ImportKeyMaterial")
		if ok {
			a.Calls = append(a.Calls, "kms:UpdateAlias")
		} else {
			a.Calls = append(a.Calls, "kms:CreateAlias")
		}
	}
	for i := range after {
		if after[i].Stage == lifecycle.Active {
			after[i].Stage, after[i].LeftAt = lifecycle.Previous, at
		}
	}
	return a, append(after, fresh)
}

// retirement is a retire job as an action.
func retirement(job lifecycle.NewJob, generations []lifecycle.Generation) control.Action {
	a := control.Action{At: control.At(job.DueAt), Kind: string(job.Kind), Generation: job.Generation}
	for _, g := range generations {
		if g.Number == job.Generation {
			a.KeyID = control.String(g.KeyID)
		}
	}
	what, call := "", ""
	switch job.Request.Retire {
	case lifecycle.RetireDisable:
		what, call = "disable KMS key %s of generation %d", "kms:DisableKey"
	case lifecycle.RetireMaterial:
		what, call = "delete the material of KMS key %s of generation %d", "kms:DeleteImportedKeyMaterial"
	case lifecycle.RetireDelete:
		what, call = "schedule the deletion of KMS key %s of generation %d", "kms:ScheduleKeyDeletion"
	}
	a.Message = fmt.Sprintf(what, a.KeyID, a.Generation) + ", unless it is in use then"
	a.Calls = []string{"kms:GetKeyLastUsage", call}
	return a
}

func activeGeneration(generations []lifecycle.Generation) (lifecycle.Generation, bool) {
	for _, g := range generations {
		if g.Stage == lifecycle.Active {
			return g, true
		}
	}
	return lifecycle.Generation{}, false
}

// number and keyOf are of the active generation.
func number(generations []lifecycle.Generation) int {
	g, _ := activeGeneration(generations)
	return g.Number
}

func keyOf(generations []lifecycle.Generation) string {
	g, _ := activeGeneration(generations)
	return g.KeyID
}

// materials counts the generations in one KMS key.
func materials(generations []lifecycle.Generation, keyID string) (n int) {
	for _, g := range generations {
		if g.KeyID == keyID && g.Stage != lifecycle.Destroyed {
			n++
		}
	}
	return n
}

// monthlyCost is what the group's KMS keys cost a month.
func monthlyCost(generations []lifecycle.Generation, now time.Time) (cost float64) {
	seen := make(map[string]bool)
	for _, g := range generations {
		state := g.State(now)
		if g.KeyID == "" || seen[g.KeyID] || state == "destroyed" || state == "pending-deletion" {
			continue
		}
		seen[g.KeyID] = true
		cost += keyPrice * float64(1+min(materials(generations, g.KeyID)-1, pricedRotations))
	}
	return cost
}
