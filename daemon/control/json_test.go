package control_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"byokd/daemon/control"

	"github.com/google/go-cmp/cmp"
)

// TestJSON holds the shapes of the contract: what is unknown is null and there.
func TestJSON(t *testing.T) {
	tests := []struct {
		name string
		in   any
		want string
	}{
		{"group, nothing known", control.GroupStatus{Group: "a", State: "invalid"},
			`{"group":"a","state":"invalid","alias":null,"region":null,"account":null,` +
				`"active":{"generation":null,"key_id":null,"key_arn":null,"valid_to":null},` +
				`"last_rotation":null,"next_rotation":null,"problems":[]}`},
		{"group", sampleGroup,
			`{"group":"payments","state":"ok","alias":"alias/payments","region":"eu-central-1","account":"111122223333",` +
				`"active":{"generation":0,"key_id":"k","key_arn":"arn","valid_to":"2026-11-23T18:00:00Z"},` +
				`"last_rotation":"2026-11-23T18:00:00Z","next_rotation":"2026-11-23T18:00:00Z",` +
				`"problems":[{"code":"old-alias","message":"m","since":"2026-11-23T18:00:00Z"}]}`},
		{"key, nothing known", control.Key{State: "pre-active"},
			`{"generation":0,"state":"pre-active","key_id":null,"key_arn":null,"key_material_id":null,"hsm_label":null,"hsm_id":null,` +
				`"created_at":null,"imported_at":null,"valid_to":null}`},
		{"key", sampleKey,
			`{"generation":1,"state":"active","key_id":"k","key_arn":"arn","key_material_id":"m","hsm_label":"byokd/payments/1",` +
				`"hsm_id":"000102030405060708090a0b0c0d0e0f",` +
				`"created_at":"2026-11-23T18:00:00Z","imported_at":"2026-11-23T18:00:00Z","valid_to":"2026-11-23T18:00:00Z"}`},
		{"job, nothing known", control.Job{},
			`{"id":"","kind":"","group":"","generation":null,"state":"","trigger":"","waiting_for":null,"joined":false,` +
				`"created_at":null,"started_at":null,"finished_at":null,"next_attempt":null,"attempt":0,"error":null,"steps":[]}`},
		{"job", sample,
			`{"id":"019aa000-0000-7000-8000-000000000001","kind":"rotate","group":"payments","generation":3,"state":"retryable",` +
				`"trigger":"control","waiting_for":"pin","joined":true,` +
				`"created_at":"2026-11-23T18:00:00Z","started_at":"2026-11-23T18:00:00Z","finished_at":null,` +
				`"next_attempt":"2026-11-23T19:00:00Z","attempt":2,"error":"PIN incorrect",` +
				`"steps":[{"name":"generate","state":"done","started_at":"2026-11-23T18:00:00Z","finished_at":"2026-11-23T18:00:00Z","message":"made byokd/payments/3"},` +
				`{"name":"create","state":"failed","started_at":"2026-11-23T18:00:00Z","finished_at":null,"message":null}]}`},
		{"job without steps", control.JobSummary{},
			`{"id":"","kind":"","group":"","generation":null,"state":"","trigger":"","waiting_for":null,"joined":false,` +
				`"created_at":null,"started_at":null,"finished_at":null,"next_attempt":null,"attempt":0,"error":null}`},
		{"hsm, nothing known", control.HSMStatus{Name: "main"},
			`{"name":"main","module":"","library":null,"token_label":null,"token_serial":null,"token_model":null,"token_firmware":null,` +
				`"connected":false,"state":"","algorithm":null,"proofs":[],"error":null,"login_blocked":null}`},
		{"daemon, nothing known", control.DaemonStatus{},
			`{"version":{"version":"","revision":null,"modified":false,"go":"","platform":""},"designated":false,"host":"","started_at":null,` +
				`"config":"","last_reload":{"at":null,"ok":false,"error":null,"restart":[]},"endpoints":[],"outbox":{"pending":0,"parked":0},` +
				`"quotas":{"get_parameters_for_import":0,"used":[]},"hsms":[],"hooks":[],"problems":[]}`},
		{"quota, nothing known", control.QuotaUse{Region: "r", Operation: "kms:CreateKey"},
			`{"account":null,"credential":null,"region":"r","operation":"kms:CreateKey","quota":0,"source":"","per_second":0,"waiting":0,"throttled":0}`},
		{"hook, nothing known", control.Hook{On: "*"}, `{"on":"*","command":[],"waiting":0,"ran_at":null,"event_id":null,"error":null}`},
		{"timeline, nothing known", control.Timeline{Group: "a", State: "pending"},
			`{"group":"a","state":"pending","alias":null,"next_rotation":null,"generations":[]}`},
		{"period, nothing known", control.Period{Generation: 1, State: "pre-active"},
			`{"generation":1,"state":"pre-active","key_id":null,"made_at":null,"active_from":null,"active_to":null,"disabled_at":null,` +
				`"material_deleted_at":null,"deletion_date":null,"valid_to":null}`},
		{"event, nothing known", control.Event{EventID: "e", Sequence: 1, Group: "a", DetailType: "KMS Key Disabled", State: "pending"},
			`{"event_id":"e","sequence":1,"group":"a","detail_type":"KMS Key Disabled","state":"pending","occurred_at":null,"job_id":null,` +
				`"region":null,"account":null,"resources":[],"attempt":0,"next_attempt":null,"sent_at":null,"aws_event_id":null,"error":null,"detail":null}`},
		{"event", sampleEvent,
			`{"event_id":"e","sequence":7,"group":"payments","detail_type":"KMS Alias Moved","state":"pending","occurred_at":"2026-11-23T18:00:00Z","job_id":"j",` +
				`"region":"eu-central-1","account":"111122223333","resources":["arn"],"attempt":2,"next_attempt":"2026-11-23T18:00:00Z",` +
				`"sent_at":"2026-11-23T18:00:00Z","aws_event_id":"a","error":"throttled","detail":{"schema":1}}`},
		{"audit, nothing known", control.AuditEntry{Actor: "byokd", Action: "a"},
			`{"at":null,"group":null,"job_id":null,"actor":"byokd","action":"a","detail":null,"definition":null}`},
		{"error", &control.Error{Code: control.Usage, Message: "m"}, `{"code":"usage","message":"m"}`},
		{"time elsewhere", control.At(time.Date(2026, 11, 23, 19, 0, 0, 999, time.FixedZone("CET", 3600))), `"2026-11-23T18:00:00Z"`},
	}
	for _, tt := range tests {
		got, err := json.Marshal(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if string(got) != tt.want {
			t.Errorf("%s:\n%s", tt.name, cmp.Diff(tt.want, string(got)))
		}
	}
}

// TestRoundTrip: a client reads what a server writes.
func TestRoundTrip(t *testing.T) {
	for _, v := range []any{sampleGroup, sampleKey, sample, sample.JobSummary, sampleHSM, sampleDaemon, sampleDrift, sampleTimeline, samplePlan, sampleEvent, sampleAudit} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(v))
		if err := json.Unmarshal(b, got.Interface()); err != nil {
			t.Errorf("%T: %v", v, err)
			continue
		}
		if diff := cmp.Diff(v, got.Elem().Interface()); diff != "" {
			t.Errorf("%T: (-want +got)\n%s", v, diff)
		}
	}
	known := control.Step{Name: "create", StartedAt: control.At(at), Message: "m"}
	if err := json.Unmarshal([]byte(`{"started_at": null, "message": null}`), &known); err != nil || known != (control.Step{Name: "create"}) {
		t.Errorf("null over what was known: %+v, %v", known, err)
	}
	for _, bad := range []string{`1`, `"yesterday"`, `""`} {
		if err := json.Unmarshal([]byte(bad), new(control.Time)); err == nil {
			t.Errorf("time %s: no error", bad)
		}
	}
}

func TestTimeString(t *testing.T) {
	if got := control.At(at).String(); got != "2026-11-23T18:00:00Z" {
		t.Errorf("got %s", got)
	}
	if got := (control.Time{}).String(); got != "-" {
		t.Errorf("zero: got %s", got)
	}
}

func TestBuildVersion(t *testing.T) {
	if v := control.BuildVersion("1.2.3"); v.Version != "1.2.3" || v.Go == "" || v.Platform == "" {
		t.Errorf("linked: got %+v", v)
	}
	if v := control.BuildVersion(""); v.Version == "" {
		t.Errorf("not linked: got %+v", v)
	}
	tests := []struct {
		in   control.Version
		want string
	}{
		{control.Version{Version: "1.0", Go: "go1.26.8", Platform: "linux/amd64"}, "1.0 (go1.26.8, linux/amd64)"},
		{control.Version{Version: "1.0", Revision: "0123456789abcdef", Go: "go1.26.8", Platform: "linux/amd64"}, "1.0 0123456789ab (go1.26.8, linux/amd64)"},
		{control.Version{Version: "1.0", Revision: "0123", Modified: true, Go: "go1.26.8", Platform: "linux/arm64"}, "1.0 0123+changes (go1.26.8, linux/arm64)"},
	}
	for _, tt := range tests {
		if got := tt.in.String(); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}
