package awssim

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// eventsOperations are the operations of EventBridge.
var eventsOperations = map[string]operation{
	"CreateEventBus":   op((*call).createEventBus),
	"DeleteEventBus":   op((*call).deleteEventBus),
	"DescribeEventBus": op((*call).describeEventBus),
	"ListEventBuses":   op((*call).listEventBuses),
	"PutEvents":        op((*call).putEvents),

	"DeleteRule":            op((*call).deleteRule),
	"DescribeRule":          op((*call).describeRule),
	"DisableRule":           op((*call).disableRule),
	"EnableRule":            op((*call).enableRule),
	"ListRuleNamesByTarget": op((*call).listRuleNamesByTarget),
	"ListRules":             op((*call).listRules),
	"ListTargetsByRule":     op((*call).listTargetsByRule),
	"PutRule":               op((*call).putRule),
	"PutTargets":            op((*call).putTargets),
	"RemoveTargets":         op((*call).removeTargets),
	"TestEventPattern":      op((*call).testEventPattern),
}

const (
	// maxEventsSize is the size of all entries of one PutEvents: 1 MB since
	// 29 January 2026, 256 KB before.
	maxEventsSize = 1 << 20

	maxBuses      = 100 // per account and Region
	maxDetailType = 128 // characters
	maxSource     = 256 // characters
	maxNesting    = 1000
)

// A bus is an event bus.
type bus struct {
	name, description string
	created           time.Time
	rules             map[string]*rule
}

func newBus(name, description string, created time.Time) *bus {
	return &bus{name: name, description: description, created: created, rules: make(map[string]*rule)}
}

// An Event is an event that PutEvents put on a bus.
type Event struct {
	Account  string    // whose bus it is
	Region   string    // where the bus is
	Bus      string    // its name
	Received time.Time // by the simulator's clock
	Envelope Envelope
}

// An Envelope is an event as EventBridge hands it to a rule's targets.
type Envelope struct {
	Version    string          `json:"version"`
	ID         string          `json:"id"` // the EventId that PutEvents answered
	DetailType string          `json:"detail-type"`
	Source     string          `json:"source"`
	Account    string          `json:"account"`
	Time       time.Time       `json:"time"` // whole seconds, UTC
	Region     string          `json:"region"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`
}

// Events returns the events of all buses, in the order in which they arrived.
// The oldest are forgotten when there are very many.
func (s *Sim) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

type putEventsInput struct {
	Entries    []putEventsRequestEntry `required:"" len:"1,10"`
	EndpointId *string                 `len:"1,50" pattern:"^[A-Za-z0-9\\-]+[\\.][A-Za-z0-9\\-]+$"`
}

type putEventsRequestEntry struct {
	Time         *timestamp
	Source       *string
	Resources    []string `each:"0,2048"`
	DetailType   *string
	Detail       *string
	EventBusName *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[\\.\\-_A-Za-z0-9]+"`
	TraceHeader  *string `len:"1,500"`

	// Members that only messages about entries show.
	KmsKeyIdentifier, InternalMetadata *string `json:"-"`
}

// size is the size of an entry as EventBridge counts it.
func (e *putEventsRequestEntry) size() int {
	n := len(deref(e.Source)) + len(deref(e.DetailType)) + len(deref(e.Detail))
	if e.Time != nil {
		n += 14
	}
	for _, r := range e.Resources {
		n += len(r)
	}
	return n
}

// putEvents answers 200 with an EventId also for an entry to a bus that does
// not exist, and drops it: so does AWS.
func (c *call) putEvents(in *putEventsInput) (any, error) {
	size := 0
	for _, e := range in.Entries {
		size += e.size()
	}
	if size > maxEventsSize {
		return nil, fail("ValidationException", "Total size of the entries in the request is over the limit.")
	}
	entries, failed := []fields{}, 0
	for _, e := range in.Entries {
		code, message := e.problem()
		if code == "" {
			code, message = c.elsewhere(deref(e.EventBusName))
		}
		if code != "" {
			entries = append(entries, fields{"ErrorCode": code, "ErrorMessage": message})
			failed++
			continue
		}
		id := newUUID()
		entries = append(entries, fields{"EventId": id})
		if b := c.bus(deref(e.EventBusName)); b != nil {
			event := c.event(e, b, id)
			c.sim.keep(event)
			c.sim.route(b, event)
		}
	}
	return fields{"FailedEntryCount": failed, "Entries": entries}, nil
}

// problem returns the error of an entry, or two empty strings.
func (e *putEventsRequestEntry) problem() (code, message string) {
	for _, required := range []struct {
		name  string
		value *string
	}{{"Source", e.Source}, {"DetailType", e.DetailType}, {"Detail", e.Detail}} {
		if deref(required.value) == "" {
			return "InvalidArgument", "Parameter " + required.name + " is not valid. Reason: " + required.name + " is a required argument."
		}
	}
	switch {
	case strings.HasPrefix(*e.Source, "aws."):
		return "NotAuthorizedForSourceException", "Not authorized for the source."
	case utf8.RuneCountInString(*e.Source) > maxSource:
		return "InvalidArgument", "Parameter Source is not valid. Reason: Source is longer than 256 characters."
	case utf8.RuneCountInString(*e.DetailType) > maxDetailType:
		return "InvalidArgument", "Parameter DetailType is not valid. Reason: DetailType is longer than 128 characters."
	case !isObject(*e.Detail):
		return "MalformedDetail", "Detail is malformed."
	}
	return "", ""
}

// elsewhere returns the error of an entry to a bus that another account or
// Region has, or two empty strings.
func (c *call) elsewhere(bus string) (code, message string) {
	arn := strings.SplitN(bus, ":", 6)
	switch {
	case len(arn) < 6 || arn[3] == c.realm.region && arn[4] == c.realm.account:
		return "", ""
	case arn[3] != c.realm.region:
		return "InvalidArgument", "Parameter EventBusName is not valid. Reason: the event bus is in another Region."
	}
	return "AccessDeniedException", c.denied(bus) + " because no resource-based policy allows the events:PutEvents action"
}

// isObject reports whether s is a JSON object that is not nested too deeply, and
// without integers that do not fit into 64 bits.
func isObject(s string) bool {
	if !json.Valid([]byte(s)) || !strings.HasPrefix(strings.TrimLeft(s, " \t\r\n"), "{") {
		return false
	}
	depth := 0
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	for {
		t, err := d.Token()
		if err != nil {
			return true // the end: what is valid has no other error
		}
		if n, ok := t.(json.Number); ok && !strings.ContainsAny(n.String(), ".eE") {
			if _, err := n.Int64(); err != nil {
				return false
			}
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxNesting {
				return false
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// bus finds a bus of the caller's account and Region by name or ARN. No name
// is the default bus's.
func (c *call) bus(name string) *bus {
	if name == "" {
		name = "default"
	}
	if strings.HasPrefix(name, "arn:") {
		mine, ok := strings.CutPrefix(name, c.realm.arn("events", "event-bus/"))
		if !ok {
			return nil
		}
		name = mine
	}
	return c.realm.buses[name]
}

// event makes the event of an entry.
func (c *call) event(e putEventsRequestEntry, b *bus, id string) Event {
	at := c.now
	if e.Time != nil {
		at = e.Time.Time
	}
	var detail bytes.Buffer
	if err := json.Compact(&detail, []byte(*e.Detail)); err != nil {
		panic(err) // problem saw that it is valid
	}
	resources := e.Resources
	if resources == nil {
		resources = []string{}
	}
	return Event{
		Account: c.realm.account, Region: c.realm.region, Bus: b.name, Received: c.now,
		Envelope: Envelope{
			Version: "0", ID: id, DetailType: *e.DetailType, Source: *e.Source,
			Account: c.caller.account, Time: at.UTC().Truncate(time.Second), Region: c.realm.region,
			Resources: resources, Detail: detail.Bytes(),
		},
	}
}

// emit puts an event of KMS itself on the default bus of a key's Region.
func (s *Sim) emit(k *key, at time.Time, detailType string, detail fields) {
	if !s.options.KMSEvents {
		return
	}
	b := s.realms[place{k.account, k.region}].buses["default"]
	e := Event{
		Account: k.account, Region: k.region, Bus: b.name, Received: at,
		Envelope: Envelope{
			Version: "0", ID: newUUID(), DetailType: detailType, Source: "aws.kms", Account: k.account,
			Time: at.UTC().Truncate(time.Second), Region: k.region, Resources: []string{k.arn}, Detail: json.RawMessage(encode(detail)),
		},
	}
	s.keep(e)
	s.route(b, e)
}

func (s *Sim) keep(e Event) {
	if len(s.events) == maxEvents {
		s.events = slices.Clone(s.events[maxEvents/2:])
	}
	s.events = append(s.events, e)
}

type busInput struct {
	Name        *string `required:"" len:"1,256" pattern:"[/\\.\\-_A-Za-z0-9]+"`
	Description *string `len:"0,512"`
}

func (c *call) createEventBus(in *busInput) (any, error) {
	if strings.HasPrefix(*in.Name, "aws.") || strings.Contains(*in.Name, "/") {
		return nil, fail("ValidationException", "Event bus name %s is reserved for partner event buses or not valid.", *in.Name)
	}
	if c.realm.buses[*in.Name] != nil {
		return nil, fail("ResourceAlreadyExistsException", "Event bus %s already exists.", *in.Name)
	}
	if len(c.realm.buses) >= maxBuses {
		return nil, fail("LimitExceededException", "The account has %d event buses in this Region, which is the limit.", maxBuses)
	}
	b := newBus(*in.Name, deref(in.Description), c.now)
	c.realm.buses[b.name] = b
	out := fields{"EventBusArn": c.realm.arn("events", "event-bus/"+b.name)}
	if b.description != "" {
		out["Description"] = b.description
	}
	return out, nil
}

func (c *call) deleteEventBus(in *busInput) (any, error) {
	if *in.Name == "default" {
		return nil, fail("ValidationException", "Cannot delete event bus default.")
	}
	if b := c.realm.buses[*in.Name]; b != nil && len(b.rules) > 0 {
		return nil, fail("ValidationException", "Event bus %s cannot be deleted since it has rules.", b.name)
	}
	delete(c.realm.buses, *in.Name)
	return nil, nil
}

type describeEventBusInput struct {
	Name *string `len:"1,1600" pattern:"(arn:aws[\\w-]*:events:[a-z]+-[a-z]+-[\\w-]+:[0-9]{12}:event-bus\\/)?[/\\.\\-_A-Za-z0-9]+"`
}

func (c *call) describeEventBus(in *describeEventBusInput) (any, error) {
	b, err := c.busOf(in.Name)
	if err != nil {
		return nil, err
	}
	return c.describe(b), nil
}

// busName returns the name in a bus's name or ARN.
func busName(s string) string {
	if _, name, ok := strings.Cut(s, ":event-bus/"); ok {
		return name
	}
	return s
}

func (c *call) describe(b *bus) fields {
	f := fields{
		"Name": b.name, "Arn": c.realm.arn("events", "event-bus/"+b.name),
		"CreationTime": timestamp{b.created}, "LastModifiedTime": timestamp{b.created},
	}
	if b.description != "" {
		f["Description"] = b.description
	}
	return f
}

type listEventBusesInput struct {
	NamePrefix *string `len:"1,256" pattern:"[/\\.\\-_A-Za-z0-9]+"`
	NextToken  *string `len:"1,2048"`
	Limit      *int64  `range:"1,100"`
}

func (c *call) listEventBuses(in *listEventBusesInput) (any, error) {
	matching := maps.Clone(c.realm.buses)
	maps.DeleteFunc(matching, func(name string, _ *bus) bool { return !strings.HasPrefix(name, deref(in.NamePrefix)) })
	names, more, err := eventsPage(c, matching, in.Limit, in.NextToken)
	if err != nil {
		return nil, err
	}
	buses := []fields{}
	for _, name := range names {
		buses = append(buses, c.describe(matching[name]))
	}
	return nextToken(fields{"EventBuses": buses}, more), nil
}
