package awssim_test

import (
	"encoding/json"
	"fmt"
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
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	tagtypes "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"
	"github.com/google/go-cmp/cmp"

	"byokd/cloud/awssim"
)

func entry(change func(*ebtypes.PutEventsRequestEntry)) ebtypes.PutEventsRequestEntry {
	e := ebtypes.PutEventsRequestEntry{Source: aws.String("byokd"), DetailType: aws.String("Test"), Detail: aws.String(`{"a": [1]}`)}
	change(&e)
	return e
}

func TestPutEvents(t *testing.T) {
	f := start(t, awssim.Options{})
	at := time.Date(2026, 11, 23, 12, 0, 0, 987e6, time.UTC)
	must[*eventbridge.CreateEventBusOutput](t)(f.events.CreateEventBus(t.Context(), &eventbridge.CreateEventBusInput{Name: aws.String("byok")}))
	var entries []ebtypes.PutEventsRequestEntry
	tests := []struct {
		change        func(e *ebtypes.PutEventsRequestEntry)
		code, message string
	}{
		{func(e *ebtypes.PutEventsRequestEntry) {}, "", ""},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Source = nil }, "InvalidArgument", "Parameter Source is not valid. Reason: Source is a required argument."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.DetailType = nil }, "InvalidArgument", "Parameter DetailType is not valid. Reason: DetailType is a required argument."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Detail = nil }, "InvalidArgument", "Parameter Detail is not valid. Reason: Detail is a required argument."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Detail = aws.String("NotJSON") }, "MalformedDetail", "Detail is malformed."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Detail = aws.String("[]") }, "MalformedDetail", "Detail is malformed."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Detail = aws.String("{{}") }, "MalformedDetail", "Detail is malformed."},
		{func(e *ebtypes.PutEventsRequestEntry) {
			e.Detail = aws.String(`{"a":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`)
		}, "MalformedDetail", "Detail is malformed."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Detail = aws.String(`{"a":9223372036854775808}`) }, "MalformedDetail", "Detail is malformed."},
		{func(e *ebtypes.PutEventsRequestEntry) { e.Source = aws.String("aws.kms") }, "NotAuthorizedForSourceException", "Not authorized for the source."},
		{func(e *ebtypes.PutEventsRequestEntry) {
			e.EventBusName = aws.String("arn:aws:events:" + region + ":999999999999:event-bus/default")
		}, "AccessDeniedException", "User: arn:aws:iam::" + account + ":user/awssim is not authorized to perform: events:PutEvents on resource: arn:aws:events:" + region +
			":999999999999:event-bus/default because no resource-based policy allows the events:PutEvents action"},
		{func(e *ebtypes.PutEventsRequestEntry) {
			e.EventBusName = aws.String("arn:aws:events:us-east-1:" + account + ":event-bus/default")
		}, "InvalidArgument", "Parameter EventBusName is not valid. Reason: the event bus is in another Region."},
		{func(e *ebtypes.PutEventsRequestEntry) {
			e.EventBusName = aws.String("arn:aws:events:" + region + ":" + account + ":event-bus/byok")
			e.Time, e.Resources = &at, []string{"arn:x"}
		}, "", ""},
	}
	for _, test := range tests {
		entries = append(entries, entry(test.change))
	}
	var out eventbridge.PutEventsOutput
	for len(entries) > 0 { // ten at once are the most
		n := min(len(entries), 10)
		some := must[*eventbridge.PutEventsOutput](t)(f.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: entries[:n]}))
		out.Entries, out.FailedEntryCount = append(out.Entries, some.Entries...), out.FailedEntryCount+some.FailedEntryCount
		entries = entries[n:]
	}
	failed := 0
	for i, test := range tests {
		got := out.Entries[i]
		if aws.ToString(got.ErrorCode) != test.code || aws.ToString(got.ErrorMessage) != test.message || (got.EventId == nil) != (test.code != "") {
			t.Errorf("entry %d: %v %v %v, want %s %s", i, aws.ToString(got.EventId), aws.ToString(got.ErrorCode), aws.ToString(got.ErrorMessage), test.code, test.message)
		}
		if test.code != "" {
			failed++
		}
	}
	if int(out.FailedEntryCount) != failed {
		t.Errorf("FailedEntryCount %d, want %d", out.FailedEntryCount, failed)
	}
	events := f.Events()
	if len(events) != 2 || events[0].Bus != "default" {
		t.Fatalf("events: %+v", events)
	}
	want := awssim.Event{
		Account: account, Region: region, Bus: "byok", Received: events[1].Received,
		Envelope: awssim.Envelope{
			Version: "0", ID: *out.Entries[len(tests)-1].EventId, DetailType: "Test", Source: "byokd", Account: account,
			Time: at.Truncate(time.Second), Region: region, Resources: []string{"arn:x"}, Detail: json.RawMessage(`{"a":[1]}`),
		},
	}
	if d := cmp.Diff(want, events[1]); d != "" {
		t.Error(d)
	}
}

func TestPutEventsLimits(t *testing.T) {
	f := start(t, awssim.Options{})
	eleven := make([]ebtypes.PutEventsRequestEntry, 11)
	for i := range eleven {
		eleven[i] = entry(func(*ebtypes.PutEventsRequestEntry) {})
	}
	_, err := f.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: eleven})
	wantCode(t, err, "ValidationException")
	if !strings.Contains(err.Error(), "1 validation error detected: Value '[PutEventsRequestEntry(") ||
		!strings.HasSuffix(err.Error(), ")]' at 'entries' failed to satisfy constraint: Member must have length less than or equal to 10") {
		t.Error(err)
	}
	if want := "PutEventsRequestEntry(time=null, source=byokd, resources=null, detailType=Test, detail={\"a\": [1]}, eventBusName=null, traceHeader=null, kmsKeyIdentifier=null, internalMetadata=null), Put"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v: no %s", err, want)
	}
	_, err = f.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{
		entry(func(e *ebtypes.PutEventsRequestEntry) { e.Resources = []string{"a", strings.Repeat("r", 2049)} }),
	}})
	wantError(t, err, "ValidationException", "1 validation error detected: Value '[a, "+strings.Repeat("r", 2049)+"]' at 'entries.1.member.resources' failed to satisfy constraint: "+
		"Member must satisfy constraint: [Member must have length less than or equal to 2048]")
	for size, code := range map[int]string{1 << 20: "", 1<<20 + 1: "ValidationException"} {
		big := entry(func(e *ebtypes.PutEventsRequestEntry) {
			head := `{"a":"`
			e.Detail = aws.String(head + strings.Repeat("x", size-len(head)-2-len("byokd")-len("Test")) + `"}`)
		})
		_, err := f.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{big}})
		if code == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		wantError(t, err, code, "Total size of the entries in the request is over the limit.")
	}
}

func TestUnknownBus(t *testing.T) {
	f := start(t, awssim.Options{})
	out := must[*eventbridge.PutEventsOutput](t)(f.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{
		Entries: []ebtypes.PutEventsRequestEntry{entry(func(e *ebtypes.PutEventsRequestEntry) { e.EventBusName = aws.String("nowhere") })},
	}))
	if out.FailedEntryCount != 0 || out.Entries[0].EventId == nil {
		t.Errorf("got %+v", out)
	}
	if events := f.Events(); len(events) != 0 {
		t.Errorf("it arrived: %+v", events)
	}
	_, err := f.events.DescribeEventBus(t.Context(), &eventbridge.DescribeEventBusInput{Name: aws.String("nowhere")})
	wantError(t, err, "ResourceNotFoundException", "Event bus nowhere does not exist.")
	bus := must[*eventbridge.DescribeEventBusOutput](t)(f.events.DescribeEventBus(t.Context(), &eventbridge.DescribeEventBusInput{}))
	if *bus.Name != "default" || *bus.Arn != "arn:aws:events:"+region+":"+account+":event-bus/default" {
		t.Errorf("default bus: %+v", bus)
	}
}

func TestBuses(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	for _, name := range []string{"a1", "a2", "b"} {
		must[*eventbridge.CreateEventBusOutput](t)(f.events.CreateEventBus(ctx, &eventbridge.CreateEventBusInput{Name: &name}))
	}
	_, err := f.events.CreateEventBus(ctx, &eventbridge.CreateEventBusInput{Name: aws.String("b")})
	wantError(t, err, "ResourceAlreadyExistsException", "Event bus b already exists.")
	must[*eventbridge.DeleteEventBusOutput](t)(f.events.DeleteEventBus(ctx, &eventbridge.DeleteEventBusInput{Name: aws.String("b")}))
	first := must[*eventbridge.ListEventBusesOutput](t)(f.events.ListEventBuses(ctx, &eventbridge.ListEventBusesInput{Limit: aws.Int32(2)}))
	rest := must[*eventbridge.ListEventBusesOutput](t)(f.events.ListEventBuses(ctx, &eventbridge.ListEventBusesInput{Limit: aws.Int32(2), NextToken: first.NextToken}))
	var names []string
	for _, b := range append(first.EventBuses, rest.EventBuses...) {
		names = append(names, *b.Name)
	}
	if d := cmp.Diff([]string{"a1", "a2", "default"}, names); d != "" || rest.NextToken != nil {
		t.Error(d, rest.NextToken)
	}
}

func TestGetResources(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	arns := make(map[string]string)
	for _, group := range []string{"a", "b", "c"} {
		key := must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(ctx, &kms.CreateKeyInput{Tags: []types.Tag{
			{TagKey: aws.String("byokd:group"), TagValue: &group}, {TagKey: aws.String("team"), TagValue: aws.String("x")},
		}})).KeyMetadata
		arns[group] = *key.Arn
	}
	f.create(types.OriginTypeAwsKms) // never tagged: never found
	find := func(filters ...tagtypes.TagFilter) map[string]bool {
		found := make(map[string]bool)
		pages := resourcegroupstaggingapi.NewGetResourcesPaginator(f.tagging, &resourcegroupstaggingapi.GetResourcesInput{
			TagFilters: filters, ResourceTypeFilters: []string{"kms:key"}, ResourcesPerPage: aws.Int32(2),
		})
		for pages.HasMorePages() {
			for _, r := range must[*resourcegroupstaggingapi.GetResourcesOutput](t)(pages.NextPage(ctx)).ResourceTagMappingList {
				found[*r.ResourceARN] = true
				if len(r.Tags) != 2 || *r.Tags[0].Key != "byokd:group" {
					t.Errorf("tags %+v", r.Tags)
				}
			}
		}
		return found
	}
	group := func(values ...string) tagtypes.TagFilter {
		return tagtypes.TagFilter{Key: aws.String("byokd:group"), Values: values}
	}
	if d := cmp.Diff(map[string]bool{arns["b"]: true}, find(group("b"))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]bool{arns["a"]: true, arns["c"]: true}, find(group("a", "c"), tagtypes.TagFilter{Key: aws.String("team")})); d != "" {
		t.Error(d)
	}
	if n := len(find()); n != 3 {
		t.Errorf("%d resources without a filter", n)
	}
	if n := len(find(group("d"))); n != 0 {
		t.Errorf("%d resources of a group that is not there", n)
	}
	_, err := f.tagging.GetResources(ctx, &resourcegroupstaggingapi.GetResourcesInput{ResourceARNList: []string{arns["a"]}, ResourceTypeFilters: []string{"kms"}})
	wantCode(t, err, "InvalidParameterException")
}

func TestPages(t *testing.T) {
	f := start(t, awssim.Options{})
	key, _ := f.imported()
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/shown"), TargetKeyId: key.KeyId}))
	must[*eventbridge.PutEventsOutput](t)(f.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{
		Entries: []ebtypes.PutEventsRequestEntry{entry(func(e *ebtypes.PutEventsRequestEntry) { e.Detail = aws.String(`{"x":"<script>"}`) })},
	}))
	get := func(method, path, body string) (int, string) {
		t.Helper()
		r := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), method, f.url+path, strings.NewReader(body)))
		r.Header.Set("Content-Type", "application/json")
		w := must[*http.Response](t)(f.config.HTTPClient.Do(r))
		defer w.Body.Close()
		return w.StatusCode, string(must[[]byte](t)(io.ReadAll(w.Body)))
	}
	for _, test := range []struct {
		method, path, body string
		code               int
		contains           string
	}{
		{"GET", "/", "", 200, "alias/shown"},
		{"GET", "/", "", 200, "&lt;script&gt;"},
		{"GET", "/_awssim/keys", "", 200, `"fingerprint": "`},
		{"GET", "/_awssim/events", "", 200, `"detail-type": "Test"`},
		{"GET", "/_awssim/health", "", 200, `"status": "ok"`},
		{"GET", "/_awssim/nothing", "", 404, ""},
		{"POST", "/_awssim/keys", "", 405, ""},
		{"POST", "/_awssim/clock", `{"advance":"-1s"}`, 400, ""},
		{"POST", "/_awssim/clock", `{"advance":"24h"}`, 200, `"time"`},
	} {
		code, body := get(test.method, test.path, test.body)
		if code != test.code || !strings.Contains(body, test.contains) {
			t.Errorf("%s %s: %d %s", test.method, test.path, code, body)
		}
	}
	// Of many events it shows the latest.
	for i := range 205 {
		f.put(fmt.Sprintf("Number %d.", i), "{}", "")
	}
	if _, body := get("GET", "/", ""); !strings.Contains(body, "The latest 200 of 206") || strings.Contains(body, "Number 4.") || !strings.Contains(body, "Number 5.") {
		t.Errorf("the page is %s", body)
	}
	if d := time.Until(f.Now()); d < 23*time.Hour {
		t.Errorf("the clock moved by %v", d)
	}
}
