package awssim

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxRules   = 300 // per bus
	maxTargets = 5   // per rule
)

// A rule sends the events that match its pattern to its targets.
type rule struct {
	name, bus, arn string
	description    string
	document       string // the event pattern as it was put
	pattern        *pattern
	disabled       bool
	role           string
	created        time.Time
	targets        map[string]*target // by ID
	matched        int
}

// A target is what a rule sends to, and what it sends: the event, a part of
// it, a constant, or a text with parts of the event in it.
type target struct {
	Id               *string           `required:"" len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	Arn              *string           `required:"" len:"1,1600"`
	RoleArn          *string           `json:",omitempty" len:"1,1600"`
	Input            *string           `json:",omitempty" len:"0,8192"`
	InputPath        *string           `json:",omitempty" len:"0,256"`
	InputTransformer *inputTransformer `json:",omitempty"`
}

type inputTransformer struct {
	InputPathsMap map[string]string `json:",omitempty"`
	InputTemplate *string           `json:",omitempty" required:"" len:"1,8192"`
}

// A Delivery is an event that a rule sent to a target. Nothing leaves the
// simulator: deliveries are there to be looked at.
type Delivery struct {
	Event    Event  `json:"-"`
	Rule     string `json:"rule"`
	TargetID string `json:"target_id"`
	Target   string `json:"target"` // ARN
	Bus      string `json:"bus"`

	// Input is what the target gets, usually the event's Envelope as JSON.
	Input string `json:"input"`
}

// Deliveries returns what rules sent to their targets, in order. The oldest
// are forgotten when there are very many.
func (s *Sim) Deliveries() []Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.deliveries)
}

// A Rule is a rule of EventBridge, as a test or a page looks at it.
type Rule struct {
	Account string            `json:"account"`
	Region  string            `json:"region"`
	Bus     string            `json:"bus"`
	Name    string            `json:"name"`
	ARN     string            `json:"arn"`
	Enabled bool              `json:"enabled"`
	Pattern string            `json:"pattern"`
	Targets map[string]string `json:"targets"` // ARNs by ID
	Matched int               `json:"matched"` // events since the rule was made
}

// Rules returns the rules of all accounts and Regions, ordered by ARN.
func (s *Sim) Rules() []Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := []Rule{}
	for p, r := range s.realms {
		for _, b := range r.buses {
			for _, each := range b.rules {
				shown := Rule{
					Account: p.account, Region: p.region, Bus: b.name, Name: each.name, ARN: each.arn, Enabled: !each.disabled,
					Pattern: each.document, Targets: make(map[string]string), Matched: each.matched,
				}
				for id, t := range each.targets {
					shown.Targets[id] = *t.Arn
				}
				rules = append(rules, shown)
			}
		}
	}
	slices.SortFunc(rules, func(a, b Rule) int { return strings.Compare(a.ARN, b.ARN) })
	return rules
}

// route sends an event to the targets of the rules that it matches.
func (s *Sim) route(b *bus, e Event) {
	if len(b.rules) == 0 {
		return
	}
	envelope, err := json.Marshal(e.Envelope)
	if err != nil {
		panic(err) // it is made of strings, times in range, and JSON
	}
	v, err := decodeNumbers(envelope)
	if err != nil {
		panic(err)
	}
	object := v.(map[string]any)
	plain := undot(object)
	for _, name := range slices.Sorted(maps.Keys(b.rules)) {
		r := b.rules[name]
		if r.disabled || !r.pattern.matches(plain) {
			continue
		}
		r.matched++
		for _, id := range slices.Sorted(maps.Keys(r.targets)) {
			t := r.targets[id]
			if len(s.deliveries) == maxEvents {
				s.deliveries = slices.Clone(s.deliveries[maxEvents/2:])
			}
			s.deliveries = append(s.deliveries, Delivery{
				Event: e, Rule: name, Bus: b.name, TargetID: id, Target: *t.Arn, Input: t.input(r, e, envelope, object),
			})
		}
	}
}

// input returns what the target gets of an event that the rule matched.
func (t *target) input(r *rule, e Event, envelope []byte, object map[string]any) string {
	switch {
	case t.Input != nil:
		return *t.Input
	case t.InputPath != nil:
		return encode(part(object, *t.InputPath))
	case t.InputTransformer != nil:
		return t.InputTransformer.apply(r, e, object)
	}
	return string(envelope)
}

// inputPlaceholder is what stands in a template for a part of the event.
var inputPlaceholder = regexp.MustCompile(`<([A-Za-z0-9_.-]+)>`)

// predefined are the variables that every template can have.
var predefined = map[string]func(*rule, Event, map[string]any) any{
	"aws.events.rule-arn":             func(r *rule, _ Event, _ map[string]any) any { return r.arn },
	"aws.events.rule-name":            func(r *rule, _ Event, _ map[string]any) any { return r.name },
	"aws.events.event.ingestion-time": func(_ *rule, e Event, _ map[string]any) any { return e.Received.UTC().Format(time.RFC3339) },
	"aws.events.event.json":           func(_ *rule, _ Event, object map[string]any) any { return object },
	"aws.events.event": func(_ *rule, _ Event, object map[string]any) any { // without its detail, and with one name that differs
		event := maps.Clone(object)
		delete(event, "detail")
		event["detailType"] = event["detail-type"]
		delete(event, "detail-type")
		return event
	},
}

// apply fills the template in. A part of the event stands as JSON, except in a
// string of the template: there it is bare, objects and lists without any
// quotes. What the event does not have is an empty string.
func (tr *inputTransformer) apply(r *rule, e Event, object map[string]any) string {
	template := *tr.InputTemplate
	var out strings.Builder
	inString, from := false, 0
	copyTo := func(to int) {
		for i := from; i < to; i++ {
			if template[i] == '"' && (i == 0 || template[i-1] != '\\') {
				inString = !inString
			}
		}
		out.WriteString(template[from:to])
	}
	for _, at := range inputPlaceholder.FindAllStringSubmatchIndex(template, -1) {
		copyTo(at[0])
		from = at[1]
		name := template[at[2]:at[3]]
		var value any
		if variable := predefined[name]; variable != nil {
			value = variable(r, e, object)
		} else {
			value = part(object, tr.InputPathsMap[name])
		}
		text, isText := value.(string)
		switch {
		case value == absent{} && !inString:
			out.WriteString(`""`)
		case value == absent{}:
		case !inString:
			out.WriteString(encode(value))
		case isText:
			quoted := encode(text)
			out.WriteString(quoted[1 : len(quoted)-1])
		default:
			out.WriteString(strings.ReplaceAll(encode(value), `"`, ""))
		}
	}
	copyTo(len(template))
	return out.String()
}

// part returns what a JSON path such as $.detail.alias or $.resources[0] leads to.
func part(object map[string]any, path string) any {
	var v any = object
	path = strings.TrimPrefix(strings.ReplaceAll(path, "[", "."), "$")
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "."), ".") {
		if name == "" {
			continue
		}
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[name]
			if !ok {
				return absent{}
			}
			v = next
		case []any:
			i, err := strconv.Atoi(strings.TrimSuffix(name, "]"))
			if err != nil || i < 0 || i >= len(in) {
				return absent{}
			}
			v = in[i]
		default:
			return absent{}
		}
	}
	return v
}

// encode writes a decoded value as JSON; an absent one is null.
func encode(v any) string {
	if v == (absent{}) {
		v = nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // it was decoded from JSON
	}
	return strings.TrimSuffix(b.String(), "\n")
}

type putRuleInput struct {
	Name               *string `required:"" len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	ScheduleExpression *string `len:"0,256"`
	EventPattern       *string `len:"0,4096"`
	State              *string `enum:"ENABLED DISABLED ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"`
	Description        *string `len:"0,512"`
	RoleArn            *string `len:"1,1600"`
	EventBusName       *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
}

// busOf finds a bus that a request names.
func (c *call) busOf(name *string) (*bus, error) {
	b := c.bus(deref(name))
	if b == nil {
		return nil, fail("ResourceNotFoundException", "Event bus %s does not exist.", busName(deref(name)))
	}
	return b, nil
}

// ruleOf finds a rule that a request names.
func (c *call) ruleOf(name, busRef *string) (*rule, error) {
	b, err := c.busOf(busRef)
	if err != nil {
		return nil, err
	}
	r := b.rules[*name]
	if r == nil {
		return nil, fail("ResourceNotFoundException", "Rule %s does not exist on EventBus %s.", *name, b.name)
	}
	return r, nil
}

func (c *call) ruleARN(busName, name string) string {
	if busName == "default" {
		return c.realm.arn("events", "rule/"+name)
	}
	return c.realm.arn("events", "rule/"+busName+"/"+name)
}

func badPattern(err error) error {
	return fail("InvalidEventPatternException", "Event pattern is not valid. Reason: %v", err)
}

func (c *call) putRule(in *putRuleInput) (any, error) {
	b, err := c.busOf(in.EventBusName)
	if err != nil {
		return nil, err
	}
	switch {
	case in.EventPattern == nil && in.ScheduleExpression == nil:
		return nil, fail("ValidationException", "Parameter(s) EventPattern or ScheduleExpression must be specified.")
	case in.ScheduleExpression != nil:
		return nil, fail("ValidationException", "awssim has no rules on a schedule.")
	case len(*in.EventPattern) > maxPattern:
		return nil, fail("LimitExceededException", "The event pattern has %d characters, the limit is %d.", len(*in.EventPattern), maxPattern)
	}
	p, err := parsePattern(*in.EventPattern)
	if err != nil {
		return nil, badPattern(err)
	}
	r := b.rules[*in.Name]
	if r == nil {
		if len(b.rules) >= maxRules {
			return nil, fail("LimitExceededException", "The event bus %s has %d rules, which is the limit.", b.name, maxRules)
		}
		r = &rule{name: *in.Name, bus: b.name, arn: c.ruleARN(b.name, *in.Name), created: c.now, targets: make(map[string]*target)}
		b.rules[r.name] = r
	}
	r.document, r.pattern, r.disabled = *in.EventPattern, p, deref(in.State) == "DISABLED"
	r.description, r.role = deref(in.Description), deref(in.RoleArn)
	return fields{"RuleArn": r.arn}, nil
}

// show returns a rule as DescribeRule and ListRules have it.
func (r *rule) show() fields {
	f := fields{"Name": r.name, "Arn": r.arn, "EventPattern": r.document, "State": "ENABLED", "EventBusName": r.bus}
	if r.disabled {
		f["State"] = "DISABLED"
	}
	if r.description != "" {
		f["Description"] = r.description
	}
	if r.role != "" {
		f["RoleArn"] = r.role
	}
	return f
}

// A ruleInput names a rule.
type ruleInput struct {
	Name         *string `required:"" len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	EventBusName *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
	Force        bool
}

func (c *call) describeRule(in *ruleInput) (any, error) {
	r, err := c.ruleOf(in.Name, in.EventBusName)
	if err != nil {
		return nil, err
	}
	f := r.show()
	f["CreatedBy"] = c.realm.account
	return f, nil
}

// deleteRule does nothing if there is no such rule.
func (c *call) deleteRule(in *ruleInput) (any, error) {
	b, err := c.busOf(in.EventBusName)
	if err != nil {
		return nil, err
	}
	if r := b.rules[*in.Name]; r != nil && len(r.targets) > 0 {
		return nil, fail("ValidationException", "Rule can't be deleted since it has targets.")
	}
	delete(b.rules, *in.Name)
	return nil, nil
}

func (c *call) enableRule(in *ruleInput) (any, error)  { return c.setRule(in, false) }
func (c *call) disableRule(in *ruleInput) (any, error) { return c.setRule(in, true) }

func (c *call) setRule(in *ruleInput, disabled bool) (any, error) {
	r, err := c.ruleOf(in.Name, in.EventBusName)
	if err != nil {
		return nil, err
	}
	r.disabled = disabled
	return nil, nil
}

// nextToken finishes an output of EventBridge that is one page.
func nextToken(f fields, more rest) fields {
	if more.marker != "" {
		f["NextToken"] = more.marker
	}
	return f
}

// eventsPage is page with EventBridge's error.
func eventsPage[V any](c *call, all map[string]V, limit *int64, token *string) ([]string, rest, error) {
	names, more, err := page(c, maps.Keys(all), limit, 100, token)
	if err != nil {
		return nil, more, fail("ValidationException", "The NextToken is not valid.")
	}
	return names, more, nil
}

type listRulesInput struct {
	NamePrefix   *string `len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	EventBusName *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
	NextToken    *string `len:"1,2048"`
	Limit        *int64  `range:"1,100"`
}

func (c *call) listRules(in *listRulesInput) (any, error) {
	b, err := c.busOf(in.EventBusName)
	if err != nil {
		return nil, err
	}
	matching := maps.Clone(b.rules)
	maps.DeleteFunc(matching, func(name string, _ *rule) bool { return !strings.HasPrefix(name, deref(in.NamePrefix)) })
	names, more, err := eventsPage(c, matching, in.Limit, in.NextToken)
	if err != nil {
		return nil, err
	}
	rules := []fields{}
	for _, name := range names {
		rules = append(rules, matching[name].show())
	}
	return nextToken(fields{"Rules": rules}, more), nil
}

type putTargetsInput struct {
	Rule         *string  `required:"" len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	EventBusName *string  `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
	Targets      []target `required:"" len:"1,100"`
}

func (c *call) putTargets(in *putTargetsInput) (any, error) {
	r, err := c.ruleOf(in.Rule, in.EventBusName)
	if err != nil {
		return nil, err
	}
	after := maps.Clone(r.targets)
	for _, t := range in.Targets {
		if problem := t.problem(); problem != "" {
			return nil, fail("ValidationException", "%s", problem)
		}
		after[*t.Id] = &t
	}
	if len(after) > maxTargets {
		return nil, fail("LimitExceededException", "The requested resource exceeds the maximum number allowed.")
	}
	r.targets = after
	return fields{"FailedEntryCount": 0, "FailedEntries": []fields{}}, nil
}

// problem returns what is wrong with a target, empty if nothing is.
func (t *target) problem() string {
	given := 0
	for _, is := range []bool{t.Input != nil, t.InputPath != nil, t.InputTransformer != nil} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		return "Only one of Input, InputPath, or InputTransformer must be provided for target " + *t.Id + "."
	case !strings.HasPrefix(*t.Arn, "arn:"):
		return "Target " + *t.Id + ": " + *t.Arn + " is not an ARN."
	case t.Input != nil && !json.Valid([]byte(*t.Input)):
		return "Target " + *t.Id + ": the Input is not JSON."
	case t.InputTransformer == nil:
		return ""
	}
	for _, found := range inputPlaceholder.FindAllStringSubmatch(*t.InputTransformer.InputTemplate, -1) {
		name := found[1]
		if _, known := t.InputTransformer.InputPathsMap[name]; !known && predefined[name] == nil {
			return "InputTemplate for target " + *t.Id + " contains invalid placeholder " + name + "."
		}
	}
	return ""
}

type removeTargetsInput struct {
	Rule         *string  `required:"" len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	EventBusName *string  `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
	Ids          []string `required:"" len:"1,100" each:"1,64" eachPattern:"[\\.\\-_A-Za-z0-9]+"`
	Force        bool
}

func (c *call) removeTargets(in *removeTargetsInput) (any, error) {
	r, err := c.ruleOf(in.Rule, in.EventBusName)
	if err != nil {
		return nil, err
	}
	failed := []fields{}
	for _, id := range in.Ids {
		if r.targets[id] == nil {
			failed = append(failed, fields{"TargetId": id, "ErrorCode": "ResourceNotFoundException", "ErrorMessage": "Target " + id + " does not exist on rule " + r.name + "."})
		}
		delete(r.targets, id)
	}
	return fields{"FailedEntryCount": len(failed), "FailedEntries": failed}, nil
}

type listTargetsByRuleInput struct {
	Rule         *string `required:"" len:"1,64" pattern:"[\\.\\-_A-Za-z0-9]+"`
	EventBusName *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
	NextToken    *string `len:"1,2048"`
	Limit        *int64  `range:"1,100"`
}

func (c *call) listTargetsByRule(in *listTargetsByRuleInput) (any, error) {
	r, err := c.ruleOf(in.Rule, in.EventBusName)
	if err != nil {
		return nil, err
	}
	ids, more, err := eventsPage(c, r.targets, in.Limit, in.NextToken)
	if err != nil {
		return nil, err
	}
	targets := []*target{}
	for _, id := range ids {
		targets = append(targets, r.targets[id])
	}
	return nextToken(fields{"Targets": targets}, more), nil
}

type listRuleNamesByTargetInput struct {
	TargetArn    *string `required:"" len:"1,1600"`
	EventBusName *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
	NextToken    *string `len:"1,2048"`
	Limit        *int64  `range:"1,100"`
}

func (c *call) listRuleNamesByTarget(in *listRuleNamesByTargetInput) (any, error) {
	b, err := c.busOf(in.EventBusName)
	if err != nil {
		return nil, err
	}
	matching := maps.Clone(b.rules)
	maps.DeleteFunc(matching, func(_ string, r *rule) bool {
		for _, t := range r.targets {
			if *t.Arn == *in.TargetArn {
				return false
			}
		}
		return true
	})
	names, more, err := eventsPage(c, matching, in.Limit, in.NextToken)
	if err != nil {
		return nil, err
	}
	return nextToken(fields{"RuleNames": append([]string{}, names...)}, more), nil
}

type testEventPatternInput struct {
	EventPattern *string `required:"" len:"0,4096"`
	Event        *string `required:""`
}

// testEventPattern wants an event with the members that every event has.
func (c *call) testEventPattern(in *testEventPatternInput) (any, error) {
	p, err := parsePattern(*in.EventPattern)
	if err != nil {
		return nil, badPattern(err)
	}
	v, err := decodeNumbers([]byte(*in.Event))
	object, ok := v.(map[string]any)
	if err != nil || !ok {
		return nil, fail("ValidationException", "Parameter Event is not valid.")
	}
	for _, name := range []string{"id", "account", "source", "time", "region", "detail-type"} {
		if _, ok := object[name]; !ok {
			return nil, fail("ValidationException", "Parameter Event is not valid.")
		}
	}
	return fields{"Result": p.matches(undot(object))}, nil
}
