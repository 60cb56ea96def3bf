package awssim_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
)

const sampleEvent = `{"version":"0","id":"1","detail-type":"KMS Key Rotated","source":"byokd","account":"111122223333","time":"2026-01-01T00:00:00Z",
	"region":"eu-central-1","resources":["arn:one","arn:two"],
	"detail":{"alias":"alias/prod-Pay","count":3,"size":3.50,"ok":true,"none":null,"ip":"10.1.2.3","empty":"","list":[],"steps":[{"name":"wrap","ms":5},{"name":"import","ms":90}]}}`

// TestPatterns asks TestEventPattern about the sample.
func TestPatterns(t *testing.T) {
	f := start(t, awssim.Options{})
	for _, test := range []struct {
		pattern string
		want    bool
	}{
		{`{"source":["byokd"]}`, true},
		{`{"source":["other","byokd"],"detail-type":["KMS Key Rotated"]}`, true},
		{`{"source":["byokd"],"detail-type":["Other"]}`, false},
		{`{"resources":["arn:two"]}`, true},
		{`{"detail":{"alias":["alias/prod-pay"]}}`, false},
		{`{"detail":{"alias":[{"prefix":"alias/prod-"}]}}`, true},
		{`{"detail":{"alias":[{"prefix":"alias/test-"},{"suffix":"Pay"}]}}`, true},
		{`{"detail":{"alias":[{"prefix":{"equals-ignore-case":"ALIAS/"}}]}}`, true},
		{`{"detail":{"alias":[{"suffix":{"equals-ignore-case":"PAX"}}]}}`, false},
		{`{"detail":{"alias":[{"equals-ignore-case":"ALIAS/PROD-PAY"}]}}`, true},
		{`{"detail":{"alias":[{"wildcard":"alias/*-P*"}]}}`, true},
		{`{"detail":{"alias":[{"wildcard":"*prod"}]}}`, false},
		{`{"detail":{"alias":[{"wildcard":"alias/\\*"}]}}`, false},
		{`{"detail":{"alias":[{"anything-but":"alias/x"}]}}`, true},
		{`{"detail":{"alias":[{"anything-but":["alias/x","alias/prod-Pay"]}]}}`, false},
		{`{"detail":{"alias":[{"anything-but":{"prefix":"alias/prod"}}]}}`, false},
		{`{"detail":{"alias":[{"anything-but":{"suffix":["x","z"]}}]}}`, true},
		{`{"detail":{"alias":[{"anything-but":{"equals-ignore-case":["ALIAS/prod-pay"]}}]}}`, false},
		{`{"detail":{"alias":[{"anything-but":{"wildcard":"*/prod*"}}]}}`, false},
		{`{"detail":{"missing":[{"anything-but":"x"}]}}`, false},
		{`{"detail":{"count":[3]}}`, true},
		{`{"detail":{"count":[{"anything-but":[3,4]}]}}`, false},
		{`{"detail":{"size":[3.5]}}`, true}, // it is written 3.50
		{`{"detail":{"size":[{"anything-but":3.5}]}}`, false},
		{`{"detail.alias":[{"prefix":"alias/"}]}`, true}, // a dot is a step down
		{`{"detail":{"steps.name":["wrap"]}}`, true},
		{`{"detail":{"size":[{"numeric":["=",3.5]}]}}`, true},
		{`{"detail":{"count":[{"numeric":[">",0,"<=",3]}]}}`, true},
		{`{"detail":{"count":[{"numeric":["<",3]}]}}`, false},
		{`{"detail":{"alias":[{"numeric":["<",3]}]}}`, false},
		{`{"detail":{"ok":[true],"none":[null],"empty":[""]}}`, true},
		{`{"detail":{"ok":["true"]}}`, false},
		{`{"detail":{"alias":[{"exists":true}],"missing":[{"exists":false}]}}`, true},
		{`{"detail":{"alias":[{"exists":false}]}}`, false},
		{`{"detail":{"steps":[{"exists":true}]}}`, false}, // not a leaf
		{`{"detail":{"list":[{"exists":false}]}}`, true},
		{`{"nothing":{"at":{"all":[{"exists":false}]}}}`, true},
		{`{"detail":{"steps":{"name":["import"],"ms":[{"numeric":[">",50]}]}}}`, true},
		{`{"detail":{"steps":{"name":["wrap"],"ms":[90]}}}`, false}, // of one element
		{`{"detail":{"ip":[{"cidr":"10.0.0.0/8"}]}}`, true},
		{`{"detail":{"ip":[{"cidr":"10.0.0.0/16"}]}}`, false},
		{`{"detail":{"$or":[{"count":[4]},{"alias":[{"prefix":"alias/"}]}],"ok":[true]}}`, true},
		{`{"$or":[{"source":["x"]},{"account":["x"]}]}`, false},
	} {
		out, err := f.events.TestEventPattern(t.Context(), &eventbridge.TestEventPatternInput{EventPattern: aws.String(test.pattern), Event: aws.String(sampleEvent)})
		if err != nil || out.Result != test.want {
			t.Errorf("%s: %v, %v", test.pattern, out, err)
		}
	}
	for _, pattern := range []string{
		`{`, `[]`, `{}`, `{"source":"byokd"}`, `{"source":[]}`, `{"source":[["x"]]}`, `{"source":[{"like":"x"}]}`, `{"source":[{}]}`,
		`{"source":[{"prefix":1}]}`, `{"source":[{"exists":"yes"}]}`, `{"source":[{"numeric":[">"]}]}`, `{"source":[{"numeric":["~",1]}]}`,
		`{"source":[{"numeric":[">",6000000000]}]}`, `{"source":[{"anything-but":{"like":"x"}}]}`, `{"source":[{"anything-but":[]}]}`,
		`{"source":[{"anything-but":[true]}]}`, `{"source":[{"cidr":"x"}]}`, `{"source":[{"wildcard":"a**b"}]}`, `{"$or":[{"a":["b"]},"c"]}`, `{"detail":{}} x`,
	} {
		_, err := f.events.TestEventPattern(t.Context(), &eventbridge.TestEventPatternInput{EventPattern: aws.String(pattern), Event: aws.String(sampleEvent)})
		wantCode(t, err, "InvalidEventPatternException")
	}
	for pattern, message := range map[string]string{
		`{"a":[{"prefix":["x"]}]}`:                                       "prefix match pattern must be a string",
		`{"a":[{"equals-ignore-case":1}]}`:                               "equals-ignore-case match pattern must be a string",
		`{"a":[{"wildcard":"ab**"}]}`:                                    "Consecutive wildcard characters at pos 3",
		`{"a":[{"wildcard":"*:*:*:*:*:x*"}]}`:                            "Rule is too complex - try using fewer wildcard characters or fewer repeating character sequences after a wildcard character",
		`{"a":[{"cidr":"10.0.0.0"}]}`:                                    "Malformed CIDR, one '/' required",
		`{"a":[{"cidr":"x/y"}]}`:                                         "Malformed CIDR, mask bits must be an integer",
		`{"a":[{"cidr":"x/8"}]}`:                                         "Nonstandard IP address: x",
		`{"a":[{"numeric":1}]}`:                                          "Value of numeric must be an array.",
		`{"a":[{"numeric":[">",0,"<"]}]}`:                                "Value of < must be numeric",
		`{"a":[{"numeric":[">",0,">",1]}]}`:                              "Bad numeric range operator: >",
		`{"a":[{"anything-but":null}]}`:                                  "Value of anything-but must be an array or single string/number value.",
		`{"a":[{"anything-but":["x",null]}]}`:                            "Inside anything but list, start|null|boolean is not supported.",
		`{"a":[{"anything-but":{"prefix":1}}]}`:                          "prefix/suffix match pattern must be a string",
		`{"a":[{"anything-but":{"suffix":""}}]}`:                         "Null prefix/suffix not allowed",
		`{"a":[{"anything-but":{"wildcard":[1]}}]}`:                      "wildcard match pattern must be a string",
		`{"a":[{"anything-but":{"equals-ignore-case":[1]}}]}`:            "Inside anything-but/equals-ignore-case list, number|start|null|boolean is not supported.",
		`{"a":[{"anything-but":{"prefix":{"equals-ignore-case":"x"}}}]}`: "Value of anything-but must be an array or single string/number value.",
		`{"a":[{"EXISTS":true}]}`:                                        "Unrecognized match type EXISTS",
		`{"a":1}`:                                                        `"a" must be an object or an array`,
	} {
		_, err := f.events.TestEventPattern(t.Context(), &eventbridge.TestEventPatternInput{EventPattern: aws.String(pattern), Event: aws.String(sampleEvent)})
		wantError(t, err, "InvalidEventPatternException", "Event pattern is not valid. Reason: "+message)
	}
	_, err := f.events.TestEventPattern(t.Context(), &eventbridge.TestEventPatternInput{EventPattern: aws.String(`{"a":["b"]}`), Event: aws.String(`{"source":"x"}`)})
	wantError(t, err, "ValidationException", "Parameter Event is not valid.")
}

func (f *fixture) put(detailType, detail, bus string) {
	f.t.Helper()
	entry := ebtypes.PutEventsRequestEntry{Source: aws.String("byokd"), DetailType: &detailType, Detail: &detail}
	if bus != "" {
		entry.EventBusName = &bus
	}
	must[*eventbridge.PutEventsOutput](f.t)(f.events.PutEvents(f.t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{entry}}))
}

func TestRules(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	must[*eventbridge.CreateEventBusOutput](t)(f.events.CreateEventBus(ctx, &eventbridge.CreateEventBusInput{Name: aws.String("keys")}))
	pattern := aws.String(`{"source":["byokd"],"detail-type":[{"suffix":"Failed"}]}`)
	rule := must[*eventbridge.PutRuleOutput](t)(f.events.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("alert"), EventPattern: pattern}))
	if *rule.RuleArn != "arn:aws:events:eu-central-1:111122223333:rule/alert" {
		t.Errorf("the rule is %s", *rule.RuleArn)
	}
	other := must[*eventbridge.PutRuleOutput](t)(f.events.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("alert"), EventPattern: pattern, EventBusName: aws.String("keys"), Description: aws.String("text")}))
	if *other.RuleArn != "arn:aws:events:eu-central-1:111122223333:rule/keys/alert" {
		t.Errorf("the rule is %s", *other.RuleArn)
	}
	const queue = "arn:aws:sqs:eu-central-1:111122223333:alerts"
	targets := []ebtypes.Target{
		{Id: aws.String("all"), Arn: aws.String(queue)},
		{Id: aws.String("constant"), Arn: aws.String(queue), Input: aws.String(`{"a":1}`)},
		{Id: aws.String("part"), Arn: aws.String(queue), InputPath: aws.String("$.detail.group")},
		{Id: aws.String("text"), Arn: aws.String(queue), InputTransformer: &ebtypes.InputTransformer{
			InputPathsMap: map[string]string{"g": "$.detail.group", "n": "$.detail.numbers[1]", "no": "$.detail.no"},
			InputTemplate: aws.String(`{"text":"group <g>, <n>","group":<g>,"a < b":"<no>"}`),
		}},
	}
	put := must[*eventbridge.PutTargetsOutput](t)(f.events.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("alert"), Targets: targets}))
	if put.FailedEntryCount != 0 {
		t.Errorf("put %+v", put)
	}
	f.put("Key Import Failed", `{"group":"pay\"ments","numbers":[1,2.50]}`, "")
	f.put("Key Rotated", `{}`, "")
	f.put("Key Import Failed", `{}`, "keys")
	got := make(map[string]string)
	for _, d := range f.Deliveries() {
		got[d.TargetID] = d.Input
		if d.Rule != "alert" || d.Bus != "default" || d.Target != queue || d.Event.Envelope.DetailType != "Key Import Failed" {
			t.Errorf("delivered %+v", d)
		}
	}
	var envelope awssim.Envelope
	if err := json.Unmarshal([]byte(got["all"]), &envelope); err != nil || envelope.Source != "byokd" || len(got) != 4 || len(f.Deliveries()) != 4 {
		t.Errorf("delivered %q", got)
	}
	for id, want := range map[string]string{
		"constant": `{"a":1}`, "part": `"pay\"ments"`,
		"text": `{"text":"group pay\"ments, 2.50","group":"pay\"ments","a < b":""}`,
	} {
		if got[id] != want {
			t.Errorf("%s got %s, want %s", id, got[id], want)
		}
	}

	list := must[*eventbridge.ListTargetsByRuleOutput](t)(f.events.ListTargetsByRule(ctx, &eventbridge.ListTargetsByRuleInput{Rule: aws.String("alert"), Limit: aws.Int32(3)}))
	if len(list.Targets) != 3 || list.NextToken == nil {
		t.Errorf("targets %+v", list)
	}
	names := must[*eventbridge.ListRuleNamesByTargetOutput](t)(f.events.ListRuleNamesByTarget(ctx, &eventbridge.ListRuleNamesByTargetInput{TargetArn: aws.String(queue)}))
	if len(names.RuleNames) != 1 {
		t.Errorf("rules %v", names.RuleNames)
	}
	described := must[*eventbridge.DescribeRuleOutput](t)(f.events.DescribeRule(ctx, &eventbridge.DescribeRuleInput{Name: aws.String("alert"), EventBusName: aws.String("keys")}))
	if *described.EventPattern != *pattern || *described.Description != "text" || described.State != ebtypes.RuleStateEnabled {
		t.Errorf("rule %+v", described)
	}
	must[*eventbridge.DisableRuleOutput](t)(f.events.DisableRule(ctx, &eventbridge.DisableRuleInput{Name: aws.String("alert")}))
	f.put("Key Import Failed", `{}`, "")
	must[*eventbridge.EnableRuleOutput](t)(f.events.EnableRule(ctx, &eventbridge.EnableRuleInput{Name: aws.String("alert")}))
	if n := len(f.Deliveries()); n != 4 {
		t.Errorf("%d deliveries", n)
	}

	more := []ebtypes.Target{{Id: aws.String("5"), Arn: aws.String(queue)}, {Id: aws.String("6"), Arn: aws.String(queue)}}
	_, err := f.events.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("alert"), Targets: more})
	wantCode(t, err, "LimitExceededException")
	_, err = f.events.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("none"), Targets: more})
	wantError(t, err, "ResourceNotFoundException", "Rule none does not exist on EventBus default.")
	_, err = f.events.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("alert"), Targets: []ebtypes.Target{{Id: aws.String("x"), Arn: aws.String(queue), Input: aws.String("{}"), InputPath: aws.String("$")}}})
	wantCode(t, err, "ValidationException")
	_, err = f.events.DeleteRule(ctx, &eventbridge.DeleteRuleInput{Name: aws.String("alert")})
	wantCode(t, err, "ValidationException")
	_, err = f.events.DeleteEventBus(ctx, &eventbridge.DeleteEventBusInput{Name: aws.String("keys")})
	wantCode(t, err, "ValidationException")
	removed := must[*eventbridge.RemoveTargetsOutput](t)(f.events.RemoveTargets(ctx, &eventbridge.RemoveTargetsInput{Rule: aws.String("alert"), Ids: []string{"all", "constant", "part", "text", "none"}}))
	if removed.FailedEntryCount != 1 || *removed.FailedEntries[0].TargetId != "none" {
		t.Errorf("removed %+v", removed)
	}
	must[*eventbridge.DeleteRuleOutput](t)(f.events.DeleteRule(ctx, &eventbridge.DeleteRuleInput{Name: aws.String("alert")}))
	if rules := must[*eventbridge.ListRulesOutput](t)(f.events.ListRules(ctx, &eventbridge.ListRulesInput{})); len(rules.Rules) != 0 {
		t.Errorf("rules %+v", rules.Rules)
	}
	_, err = f.events.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("x"), EventPattern: aws.String(`{"a":"b"}`)})
	wantCode(t, err, "InvalidEventPatternException")
	_, err = f.events.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("x"), ScheduleExpression: aws.String("rate(1 day)")})
	wantCode(t, err, "ValidationException")

	for path, want := range map[string]string{"/": "alert", "/_awssim/rules": "rule/keys/alert", "/_awssim/deliveries": `"target_id": "text"`} {
		response, err := http.Get(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s has no %q, %v", path, want, err)
		}
	}
}

// TestInputTransformer has what was recorded of templates, and what targets are
// refused with.
func TestInputTransformer(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	must[*eventbridge.PutRuleOutput](t)(f.events.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("r"), EventPattern: aws.String(`{"source":["byokd"]}`)}))
	paths := map[string]string{
		"userId": "$.detail.payload.acc_id", "payload": "$.detail.payload", "one": "$.detail.one", "two": "$.detail.two",
		"yes": "$.detail.yes", "absent": "$.detail.absent", "detail-type": "$.detail-type",
	}
	target := func(change func(*ebtypes.Target)) error {
		in := ebtypes.Target{Id: aws.String("t"), Arn: aws.String("arn:aws:sqs:eu-central-1:111122223333:q")}
		change(&in)
		_, err := f.events.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("r"), Targets: []ebtypes.Target{in}})
		return err
	}
	last := func() awssim.Delivery {
		all := f.Deliveries()
		return all[len(all)-1]
	}
	for template, want := range map[string]string{
		`"Event of <detail-type> type, info <absent>"`:               `"Event of Made type, info "`,
		`{"command": <absent>}`:                                      `{"command": ""}`,
		`"{[/ of <detail-type>"`:                                     `"{[/ of Made"`,
		`{"path": "users/<userId>", "bod": <payload>}`:               `{"path": "users/0a78", "bod": {"acc_id":"0a78","sf_id":"baz"}}`,
		`"Payload of <payload> and <userId>"`:                        `"Payload of {acc_id:0a78,sf_id:baz} and 0a78"`,
		`"<one> single, <two> multiple"`:                             `"[HIGH] single, [ACTIVE,INACTIVE] multiple"`,
		`{"list": <one>, "id": "<userId>/<userId>"}`:                 `{"list": ["HIGH"], "id": "0a78/0a78"}`,
		`"Command is <yes>!"`:                                        `"Command is true!"`,
		`"by <aws.events.rule-arn> <aws.events.rule-name>"`:          `"by arn:aws:events:eu-central-1:111122223333:rule/r r"`,
		`{"m": "a \"<userId>\""}`:                                    `{"m": "a \"0a78\""}`,
		`"at <aws.events.event.ingestion-time>"`:                     `"at INGESTED"`,
		`{"e": <aws.events.event>, "json": <aws.events.event.json>}`: `{"e": {"account":"111122223333","detailType":"Made","id":"ID","region":"eu-central-1","resources":[],"source":"byokd","time":"TIME","version":"0"}, "json": EVENT}`,
	} {
		if err := target(func(in *ebtypes.Target) {
			in.InputTransformer = &ebtypes.InputTransformer{InputPathsMap: paths, InputTemplate: &template}
		}); err != nil {
			t.Fatal(err)
		}
		f.put("Made", `{"payload":{"acc_id":"0a78","sf_id":"baz"},"one":["HIGH"],"two":["ACTIVE","INACTIVE"],"yes":true}`, "")
		e := last().Event
		at := e.Envelope.Time.Format(time.RFC3339)
		event := `{"account":"111122223333","detail":` + string(e.Envelope.Detail) + `,"detail-type":"Made","id":"ID","region":"eu-central-1","resources":[],"source":"byokd","time":"TIME","version":"0"}`
		event = strings.Replace(event, string(e.Envelope.Detail), `{"one":["HIGH"],"payload":{"acc_id":"0a78","sf_id":"baz"},"two":["ACTIVE","INACTIVE"],"yes":true}`, 1) // in order
		want = strings.NewReplacer("INGESTED", e.Received.UTC().Format(time.RFC3339)).Replace(want)
		want = strings.NewReplacer("ID", e.Envelope.ID, "TIME", at).Replace(strings.Replace(want, "EVENT", event, 1))
		if got := last().Input; got != want {
			t.Errorf("%s gives\n%s, want\n%s", template, got, want)
		}
	}
	wantError(t, target(func(in *ebtypes.Target) { in.Input, in.InputPath = aws.String("{}"), aws.String("$") }),
		"ValidationException", "Only one of Input, InputPath, or InputTransformer must be provided for target t.")
	wantError(t, target(func(in *ebtypes.Target) {
		in.InputTransformer = &ebtypes.InputTransformer{InputPathsMap: paths, InputTemplate: aws.String(`"with <notdefinedkey>"`)}
	}), "ValidationException", "InputTemplate for target t contains invalid placeholder notdefinedkey.")
	wantError(t, target(func(in *ebtypes.Target) { in.Id = aws.String("!@#$@!#$") }), "ValidationException",
		`1 validation error detected: Value '!@#$@!#$' at 'targets.1.member.id' failed to satisfy constraint: Member must satisfy regular expression pattern: [\.\-_A-Za-z0-9]+`)
	for body, message := range map[string]string{
		`{"Rule":"r","Targets":[{"Id":"a","Arn":"arn:x","InputTransformer":{}}]}`: "1 validation error detected: Value null at 'targets.1.member.inputTransformer.inputTemplate' failed to satisfy constraint: Member must not be null",
		`{"Rule":"r","Targets":[]}`: "1 validation error detected: Value '[]' at 'targets' failed to satisfy constraint: Member must have length greater than or equal to 1",
	} {
		if w := post(t, f.Sim, "events", "AWSEvents.PutTargets", body); !strings.Contains(w.Body.String(), message) {
			t.Errorf("%s: %s", body, w.Body)
		}
	}
}

func TestKMSEvents(t *testing.T) {
	f, ctx := start(t, awssim.Options{KMSEvents: true}), t.Context()
	key, material := f.imported()
	next := must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, randomBytes(32), func(in *kms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }))
	must[*kms.RotateKeyOnDemandOutput](t)(f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))
	must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, material, f.until(time.Hour)))
	f.Advance(time.Hour)
	f.describe(*key.KeyId)
	must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))
	f.Advance(7 * 24 * time.Hour)
	f.Keys(account, region)
	var got []string
	for _, e := range f.Events() {
		got = append(got, e.Envelope.DetailType+" "+string(e.Envelope.Detail))
		if e.Envelope.Source != "aws.kms" || e.Envelope.Resources[0] != *key.Arn {
			t.Errorf("event %+v", e.Envelope)
		}
	}
	id, first := *key.KeyId, *key.CurrentKeyMaterialId
	want := []string{
		`KMS CMK Rotation {"current-key-material-id":"` + *next.KeyMaterialId + `","key-id":"` + id + `","key-origin":"EXTERNAL","previous-key-material-id":"` + first + `","rotation-type":"ON_DEMAND"}`,
		`KMS Imported Key Material Expiration {"key-id":"` + id + `","key-material-id":"` + first + `"}`,
		`KMS CMK Deletion {"key-id":"` + id + `"}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
