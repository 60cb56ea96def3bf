// Package control is the way in for an operator: HTTP with JSON over a Unix
// socket, and the client for it.
//
// The daemon implements [Backend] and hands it to a [Server] with a socket from
// [Listen]; byokctl uses a [Client]. Who may connect is decided by the socket's
// mode and group alone; who did connect is read from the kernel (SO_PEERCRED)
// and given to the Backend with everything that changes something.
//
// The resources, all under /v1:
//
//	GET  /v1/status?group=G…                     []GroupStatus, worst first
//	GET  /v1/overview?healthy=N                  Overview
//	GET  /v1/groups/G/keys                       []Key
//	GET  /v1/timeline?group=G…                   []Timeline, worst first
//	GET  /v1/plan?group=G…&rotate=1             []Plan, by name
//	GET  /v1/events?group=G&state=S&limit=N      []Event, newest first
//	GET  /v1/audit?group=G&job=ID&limit=N        []AuditEntry, newest first
//	GET  /v1/jobs?group=G&state=S&limit=N        []JobSummary, newest first
//	GET  /v1/jobs/ID                             Job
//	GET  /v1/jobs/ID?follow=1                    one Job a line, until it is final
//	POST /v1/jobs/ID/cancel                      Job
//	POST /v1/rotate     {"groups": […], "all": false}   []Job
//	POST /v1/sync       SyncRequest              Job
//	POST /v1/drift      {"groups": […]}      []Drift; all groups where none is named
//	POST /v1/retry      {"jobs": […], "all": false}     []Job
//	GET  /v1/hsm                                 []HSMStatus
//	POST /v1/hsm/login  {"name": "main"}         []HSMStatus
//	GET  /v1/daemon                              DaemonStatus
//
// Whatever is not 200 has an [Error] as its body. In all shapes every field is
// always there, null where it is unknown, and times are RFC 3339 in UTC in
// whole seconds. Lists of states and codes may grow.
//
// The package imports the standard library only and runs on Linux only.
package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// A Backend is what a [Server] serves. All methods may be called at the same
// time from several goroutines. An error that is, or wraps, an *[Error] reaches
// the client as it is; any other one as [Internal] with its text.
//
// The argument by says who asked, for the audit trail, as in "uid 1000 (alice)".
type Backend interface {
	// Status returns the named groups, or all for none. [UnknownGroup]. The
	// Server puts them in order.
	Status(ctx context.Context, groups []string) ([]GroupStatus, error)

	// Keys returns a group's generations in ascending order. [UnknownGroup].
	Keys(ctx context.Context, group string) ([]Key, error)

	// Timeline returns the generations over time of the named groups, or of all
	// for none. [UnknownGroup]. The Server puts the groups in order.
	Timeline(ctx context.Context, groups []string) ([]Timeline, error)

	// Plan returns what byokd will do with the named groups, or with all for
	// none, by name; with rotate, what a rotation at once would do. It asks AWS
	// for nothing but the grants of the keys that aliases would leave, and only
	// with rotate. [UnknownGroup].
	Plan(ctx context.Context, groups []string, rotate bool) ([]Plan, error)

	// Events returns the events that byokd emitted, newest first. [UnknownGroup].
	Events(ctx context.Context, filter EventFilter) ([]Event, error)

	// Audit returns the audit trail, newest first. [UnknownGroup].
	Audit(ctx context.Context, filter AuditFilter) ([]AuditEntry, error)

	// Jobs returns jobs, newest first. [UnknownGroup].
	Jobs(ctx context.Context, filter JobFilter) ([]JobSummary, error)

	// Job returns one job with its steps. [UnknownJob].
	Job(ctx context.Context, id string) (Job, error)

	// Watch calls changed with the job as it is, then again each time that it
	// has changed, and returns nil after it was called with a final one.
	// Changes that follow each other closely may be seen as one; a job that has
	// not changed may be given again, and is not sent. An error of changed ends
	// it and is returned; so does ctx. [UnknownJob].
	Watch(ctx context.Context, id string, changed func(Job) error) error

	// Rotate asks for a rotation of each named group, or of all of them, and
	// returns the jobs in the order of the groups, without waiting for them.
	// Nothing is asked for unless everything can be. [UnknownGroup],
	// [NotDesignated].
	Rotate(ctx context.Context, groups []string, all bool, by string) ([]Job, error)

	// Sync asks for a synchronization. The request has been checked by
	// [SyncRequest.Check]. [UnknownGroup], [NotDesignated], and [Usage] for a
	// generation or key that the group does not have.
	Sync(ctx context.Context, request SyncRequest, by string) (Job, error)

	// Rollback asks for the alias to be pointed back. [UnknownGroup],
	// [NotDesignated], [Usage] for a generation that there is not, and [Conflict]
	// for one that it cannot be pointed at and while a rotation or roll back of the
	// group is open.
	Rollback(ctx context.Context, request RollbackRequest, by string) (Job, error)

	// Keep asks for the end of a generation's retirement. [UnknownGroup],
	// [NotDesignated], [Usage] for a generation that there is not, and [Conflict]
	// for one that cannot be kept.
	Keep(ctx context.Context, request KeepRequest, by string) (Job, error)

	// Drift compares the named groups, or all for none, with AWS, and returns
	// what differs in the order of the groups. That a group could not be
	// compared is in its Error. It takes as long as AWS does. [UnknownGroup].
	Drift(ctx context.Context, groups []string) ([]Drift, error)

	// Retry makes retryable jobs run now: those named, or all of them; it
	// returns those that it changed. [UnknownJob], and [Conflict] for a named
	// job that is not retryable.
	Retry(ctx context.Context, ids []string, all bool, by string) ([]Job, error)

	// Cancel cancels a job that has not finished. [UnknownJob], and [Conflict]
	// where it is too late.
	Cancel(ctx context.Context, id string, by string) (Job, error)

	// HSM returns the state of all tokens. With login not empty it first lifts
	// the block on logging in to the HSM of that name and tries once; [Usage]
	// for a name that is not in byokd.toml. How the try went is in the status.
	HSM(ctx context.Context, login string, by string) ([]HSMStatus, error)

	// Daemon returns what concerns the daemon as a whole.
	Daemon(ctx context.Context) (DaemonStatus, error)
}

// A Time is a moment; the zero one is unknown, null in JSON.
type Time struct{ time.Time }

// At returns t as a Time.
func At(t time.Time) Time { return Time{t} }

// String returns the time as in JSON, or "-" where it is unknown.
func (t Time) String() string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// MarshalJSON writes RFC 3339 in UTC, in whole seconds as the date functions of
// jq and others want it, or null.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return t.UTC().AppendFormat(nil, `"`+time.RFC3339+`"`), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*t = Time{}
		return nil
	}
	return t.Time.UnmarshalJSON(b)
}

// A String is a string that is null in JSON where it is empty: unknown, or not
// there.
type String string

// MarshalJSON writes the string or null.
func (s String) MarshalJSON() ([]byte, error) {
	if s == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(s))
}

// UnmarshalJSON reads a string or null.
func (s *String) UnmarshalJSON(b []byte) error {
	*s = ""
	return json.Unmarshal(b, (*string)(s))
}

// A List is a slice that is [] in JSON where it is nil.
type List[T any] []T

// MarshalJSON writes the elements.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}

// A GroupStatus is one line of `byokctl status`.
type GroupStatus struct {
	Group        string        `json:"group"`
	State        string        `json:"state"` // one of the Group constants
	Alias        String        `json:"alias"` // null: there never was a good definition
	Region       String        `json:"region"`
	Account      String        `json:"account"` // null: not asked AWS yet
	Active       ActiveKey     `json:"active"`
	LastRotation Time          `json:"last_rotation"` // null: none yet
	NextRotation Time          `json:"next_rotation"` // null: none planned
	Problems     List[Problem] `json:"problems"`
}

// An ActiveKey is the generation that a group's alias points to; all of its
// fields are null while there is none.
type ActiveKey struct {
	Generation *int   `json:"generation"`
	KeyID      String `json:"key_id"`
	KeyARN     String `json:"key_arn"`
	ValidTo    Time   `json:"valid_to"` // null: does not expire
}

// A Problem is something about a group that a person should know.
type Problem struct {
	Code    string `json:"code"` // stable, e.g. "old-alias"
	Message string `json:"message"`
	Since   Time   `json:"since"`
}

// The states of a group, in the order of the contract: the first that holds.
const (
	GroupRemoved  = "removed"
	GroupInvalid  = "invalid"
	GroupExpired  = "expired"
	GroupFailing  = "failing"
	GroupOverdue  = "overdue"
	GroupDrifted  = "drifted"
	GroupRotating = "rotating"
	GroupPending  = "pending"
	GroupOK       = "ok"
)

// severity is the order in which groups are shown: what cannot be used first,
// what heals itself last. A removed group stands behind those that want to be
// rotated and cannot.
var severity = []string{
	GroupExpired, GroupFailing, GroupInvalid, GroupOverdue, GroupDrifted,
	GroupRemoved, GroupPending, GroupRotating, GroupOK,
}

// Severity is how bad a group's state is, in the order in which groups are
// shown: the higher the worse.
func Severity(state string) int {
	return len(severity) - slices.Index(severity, state)
}

// SortWorstFirst sorts by severity, then groups with problems first, then by
// name. A state that it does not know counts as the worst.
func SortWorstFirst(groups []GroupStatus) {
	compare := func(a, b GroupStatus) int {
		if a.State != b.State {
			if n := cmp.Compare(slices.Index(severity, a.State), slices.Index(severity, b.State)); n != 0 {
				return n
			}
		}
		if n := cmp.Compare(min(len(b.Problems), 1), min(len(a.Problems), 1)); n != 0 {
			return n
		}
		return cmp.Compare(a.Group, b.Group)
	}
	if !slices.IsSortedFunc(groups, compare) { // they are where all are well: they come by name
		slices.SortFunc(groups, compare)
	}
}

// SortTimelines puts timelines in the order of the groups' severity, then by name.
func SortTimelines(timelines []Timeline) {
	slices.SortFunc(timelines, func(a, b Timeline) int {
		return cmp.Or(
			cmp.Compare(slices.Index(severity, a.State), slices.Index(severity, b.State)),
			cmp.Compare(a.Group, b.Group),
		)
	})
}

// A Key is one generation of a group.
type Key struct {
	Generation    int    `json:"generation"`
	State         string `json:"state"` // as lifecycle.Generation.State has it
	KeyID         String `json:"key_id"`
	KeyARN        String `json:"key_arn"`
	KeyMaterialID String `json:"key_material_id"`
	HSMLabel      String `json:"hsm_label"`
	HSMID         String `json:"hsm_id"` // 32 lower-case hex digits
	CreatedAt     Time   `json:"created_at"`
	ImportedAt    Time   `json:"imported_at"`
	ValidTo       Time   `json:"valid_to"`
}

// A Timeline is a group's generations over time.
type Timeline struct {
	Group        string       `json:"group"`
	State        string       `json:"state"` // as in GroupStatus
	Alias        String       `json:"alias"`
	NextRotation Time         `json:"next_rotation"` // null: none planned
	Generations  List[Period] `json:"generations"`   // ascending
}

// A Period is a generation over time. What is null has not happened, or is not
// planned.
type Period struct {
	Generation        int    `json:"generation"`
	State             string `json:"state"` // as in Key
	KeyID             String `json:"key_id"`
	MadeAt            Time   `json:"made_at"` // in the HSM; of one that byokd did not make, the KMS key's creation
	ActiveFrom        Time   `json:"active_from"`
	ActiveTo          Time   `json:"active_to"` // when the alias went on to another; null: it points at this one
	DisabledAt        Time   `json:"disabled_at"`
	MaterialDeletedAt Time   `json:"material_deleted_at"`
	DeletionDate      Time   `json:"deletion_date"` // of the KMS key
	ValidTo           Time   `json:"valid_to"`      // null: does not expire
}

// A Plan is what byokd will do with a group, as far as it can be told now.
type Plan struct {
	Group   string       `json:"group"`
	Account String       `json:"account"`
	Region  String       `json:"region"`
	Actions List[Action] `json:"actions"` // by time

	// What the group's KMS keys cost a month, in US dollars, now and when the
	// actions are done: AWS's list price.
	CostNow  float64 `json:"cost_now"`
	CostThen float64 `json:"cost_then"`

	// WaitsForQuota is how many of the actions need GetParametersForImport,
	// which the account and Region allow QuotaPerSecond times a second.
	WaitsForQuota  int     `json:"waits_for_quota"`
	QuotaPerSecond float64 `json:"quota_per_second"`

	Notes List[string] `json:"notes"` // what a person should know beforehand
}

// An Action is one thing that byokd will do.
type Action struct {
	At         Time         `json:"at"`   // when it is due; past: as soon as it can be done
	Kind       string       `json:"kind"` // as of the job
	Generation int          `json:"generation"`
	KeyID      String       `json:"key_id"` // null: a fresh KMS key
	Message    string       `json:"message"`
	Calls      List[string] `json:"calls"` // to HSM and AWS, that change something or count, in order
}

// An Event is one that byokd emitted, with what became of it.
type Event struct {
	EventID     string          `json:"event_id"`
	Sequence    int64           `json:"sequence"` // within the group, from 1
	Group       string          `json:"group"`
	DetailType  string          `json:"detail_type"`
	State       string          `json:"state"` // one of the Event constants
	OccurredAt  Time            `json:"occurred_at"`
	JobID       String          `json:"job_id"`
	Region      String          `json:"region"`
	Account     String          `json:"account"`
	Resources   List[string]    `json:"resources"`
	Attempt     int             `json:"attempt"`      // attempts that failed
	NextAttempt Time            `json:"next_attempt"` // null: at once, or none
	SentAt      Time            `json:"sent_at"`
	AWSEventID  String          `json:"aws_event_id"`
	Error       String          `json:"error"` // of the last attempt that failed
	Detail      json.RawMessage `json:"detail"`
}

// The states of an event.
const (
	EventPending = "pending" // waits to be sent
	EventSent    = "sent"    // EventBridge has accepted it
	EventParked  = "parked"  // EventBridge refused it for good
	EventLocal   = "local"   // for hooks alone: [events] was off
)

// EventStates are the states of an event.
var EventStates = []string{EventPending, EventSent, EventParked, EventLocal}

// An EventFilter chooses events. The zero value chooses all of them.
type EventFilter struct {
	Group string // "": any
	State string // one of EventStates; "": any
	Limit int    // 0: no limit
}

// An AuditEntry is one line of the audit trail.
type AuditEntry struct {
	At         Time   `json:"at"`
	Group      String `json:"group"` // null: of none
	JobID      String `json:"job_id"`
	Actor      string `json:"actor"` // a user, the owner of a request file, or a trigger
	Action     string `json:"action"`
	Detail     String `json:"detail"`
	Definition String `json:"definition"` // digest of the definition in force; null: of none
}

// An AuditFilter chooses audit entries. The zero value chooses all of them.
type AuditFilter struct {
	Group string // "": any
	JobID string // "": any
	Limit int    // 0: no limit
}

// A JobSummary is a job without its steps.
type JobSummary struct {
	ID          string `json:"id"` // UUIDv7
	Kind        string `json:"kind"`
	Group       string `json:"group"`
	Generation  *int   `json:"generation"` // null: not chosen yet
	State       string `json:"state"`      // one of the Job constants
	Trigger     string `json:"trigger"`
	WaitingFor  String `json:"waiting_for"` // null: nobody need act
	Joined      bool   `json:"joined"`      // the request met this job, which was open already
	CreatedAt   Time   `json:"created_at"`
	StartedAt   Time   `json:"started_at"`
	FinishedAt  Time   `json:"finished_at"`
	NextAttempt Time   `json:"next_attempt"`
	Attempt     int    `json:"attempt"` // attempts begun
	Error       String `json:"error"`   // of the last attempt
}

// The states of a job.
const (
	JobAvailable = "available"
	JobRunning   = "running"
	JobRetryable = "retryable"
	JobCompleted = "completed"
	JobCancelled = "cancelled"
	JobDiscarded = "discarded"
)

// JobStates are the states of a job, in the order of its life.
var JobStates = []string{JobAvailable, JobRunning, JobRetryable, JobCompleted, JobCancelled, JobDiscarded}

// JobOpen, in a [JobFilter], chooses the jobs that have not finished.
const JobOpen = "open"

// Final reports whether the job's state will not change any more.
func (j JobSummary) Final() bool {
	return j.State == JobCompleted || j.State == JobCancelled || j.State == JobDiscarded
}

// A Job is a job with its steps.
type Job struct {
	JobSummary
	Steps List[Step] `json:"steps"`
}

// A Step is one step of a job.
type Step struct {
	Name       string `json:"name"`
	State      string `json:"state"` // one of the Step constants
	StartedAt  Time   `json:"started_at"`
	FinishedAt Time   `json:"finished_at"`
	Message    String `json:"message"`
}

// The states of a step.
const (
	StepPending = "pending"
	StepRunning = "running"
	StepDone    = "done"
	StepSkipped = "skipped"
	StepFailed  = "failed"
)

// A JobFilter chooses jobs. The zero value chooses all of them.
type JobFilter struct {
	Group string // "": any
	State string // one of JobStates, or JobOpen; "": any
	Limit int    // 0: no limit
}

// A SyncRequest asks for a synchronization of one group: of the generation
// named by number or by key ID, else of the active one. In JSON a missing
// import_material or update_policy is true.
type SyncRequest struct {
	Group          string `json:"group"`
	Generation     *int   `json:"generation"`
	KeyID          String `json:"key_id"`
	ImportMaterial bool   `json:"import_material"`
	UpdatePolicy   bool   `json:"update_policy"`
	DeleteMaterial bool   `json:"delete_material"` // makes ImportMaterial false
}

// UnmarshalJSON reads a request, with the defaults of its fields, and refuses
// fields that it does not know.
func (r *SyncRequest) UnmarshalJSON(b []byte) error {
	type plain SyncRequest // without this method
	p := plain{ImportMaterial: true, UpdatePolicy: true}
	if err := decodeStrict(b, &p); err != nil {
		return err
	}
	*r = SyncRequest(p)
	return nil
}

// Check returns a [Usage] error for a request that contradicts itself. It turns
// ImportMaterial off where DeleteMaterial is set.
func (r *SyncRequest) Check() error {
	switch {
	case r.Group == "":
		return &Error{Usage, "a synchronization needs the name of a group"}
	case r.Generation != nil && r.KeyID != "":
		return &Error{Usage, "give generation or key_id, not both"}
	case r.Generation != nil && *r.Generation < 0:
		return &Error{Usage, fmt.Sprintf("there is no generation %d: they count from 0", *r.Generation)}
	case r.DeleteMaterial && r.Generation == nil && r.KeyID == "":
		return &Error{Usage, "delete_material needs generation or key_id, so that nothing is deleted by mistake"}
	}
	if r.DeleteMaterial {
		r.ImportMaterial = false
	}
	return nil
}

// A RollbackRequest asks for the alias of a group to be pointed back.
type RollbackRequest struct {
	Group string `json:"group"`
	To    *int   `json:"to"` // a generation; null: the one before the active one
}

// A KeepRequest asks that a generation be kept from retirement, or with Undo that
// it be retired again as the definition says.
type KeepRequest struct {
	Group      string `json:"group"`
	Generation int    `json:"generation"`
	Undo       bool   `json:"undo"`
}

// A Drift is what AWS has otherwise than byokd knows of a group or defines.
type Drift struct {
	Group       string           `json:"group"`
	CheckedAt   Time             `json:"checked_at"` // null: it could not be compared
	Error       String           `json:"error"`      // why not
	Differences List[Difference] `json:"differences"`
}

// A Difference is one thing that AWS has otherwise.
type Difference struct {
	Kind       string `json:"kind"`       // as lifecycle has them
	Generation *int   `json:"generation"` // null: the key is none of the group's
	KeyID      String `json:"key_id"`
	Expected   String `json:"expected"` // null: not told in a word
	Found      String `json:"found"`
	Message    string `json:"message"`
	Since      Time   `json:"since"` // when it was first seen
}

// HSMConnecting is the state of a token that byokd has not reached yet since its
// start, and that it has not missed either.
const HSMConnecting = "connecting"

// An HSMStatus is one token as `byokctl hsm` shows it.
type HSMStatus struct {
	Name          string         `json:"name"`   // of the [hsm.NAME] table
	Module        string         `json:"module"` // path
	Library       String         `json:"library"`
	TokenLabel    String         `json:"token_label"`
	TokenSerial   String         `json:"token_serial"`
	TokenModel    String         `json:"token_model"`
	TokenFirmware String         `json:"token_firmware"`
	Connected     bool           `json:"connected"`
	State         string         `json:"state"`     // a word, e.g. "ready", [HSMConnecting] or "unavailable"
	Algorithm     String         `json:"algorithm"` // KMS's name; null: none is proven
	Proofs        List[HSMProof] `json:"proofs"`
	Error         String         `json:"error"`
	LoginBlocked  String         `json:"login_blocked"` // why byokd does not log in any more; null: it does
}

// An HSMProof is the outcome of one self-test of a token.
type HSMProof struct {
	Algorithm string `json:"algorithm"` // KMS's name
	Route     string `json:"route"`     // how the token was made to wrap
	Outcome   string `json:"outcome"`   // "ok", or why not
}

// A DaemonStatus is what concerns the daemon as a whole.
type DaemonStatus struct {
	Version    Version         `json:"version"`
	Designated bool            `json:"designated"`
	Host       string          `json:"host"`
	StartedAt  Time            `json:"started_at"`
	Config     string          `json:"config"` // path of byokd.toml
	LastReload Reload          `json:"last_reload"`
	Endpoints  List[Endpoint]  `json:"endpoints"` // those that are overridden
	Outbox     Outbox          `json:"outbox"`
	Quotas     Quotas          `json:"quotas"`
	HSMs       List[HSMStatus] `json:"hsms"`
	Hooks      List[Hook]      `json:"hooks"`
	Problems   List[Problem]   `json:"problems"` // of byokd as a whole
}

// Quotas are what byokd keeps to, in requests per second per account and Region.
type Quotas struct {
	GetParametersForImport float64        `json:"get_parameters_for_import"` // as configured
	Used                   List[QuotaUse] `json:"used"`                      // of GetParametersForImport, and those that AWS has throttled
}

// A QuotaUse is how a request quota is used in one account and Region.
type QuotaUse struct {
	Account    String  `json:"account"` // null: not known yet
	Credential String  `json:"credential"`
	Region     string  `json:"region"`
	Operation  string  `json:"operation"`  // an IAM action
	Quota      float64 `json:"quota"`      // requests per second
	Source     string  `json:"source"`     // of quota: "default" (AWS's), "byokd.toml" or "service-quotas"
	PerSecond  float64 `json:"per_second"` // what is kept to: less than quota after AWS has throttled
	Waiting    int     `json:"waiting"`    // requests that wait for their turn
	Throttled  int     `json:"throttled"`  // requests that AWS has refused since byokd started
}

// A Hook is one command of [hooks].
type Hook struct {
	On      string       `json:"on"`      // a detail-type, or "*"
	Command List[string] `json:"command"` // the program and its arguments
	Waiting int          `json:"waiting"` // events that it is still to be run for
	RanAt   Time         `json:"ran_at"`  // null: never
	EventID String       `json:"event_id"`
	Error   String       `json:"error"` // of the last run; null: it succeeded
}

// A Reload is how the last reading of byokd.toml went.
type Reload struct {
	At    Time   `json:"at"`
	OK    bool   `json:"ok"`
	Error String `json:"error"`

	Restart List[string] `json:"restart"` // changed keys that count after a restart only
}

// An Endpoint is an AWS endpoint that configuration or environment overrides.
type Endpoint struct {
	Service string `json:"service"` // kms, events, sts, tagging or servicequotas
	Region  String `json:"region"`  // null: all
	URL     string `json:"url"`
}

// An Outbox counts events that have not reached their bus.
type Outbox struct {
	Pending int `json:"pending"`
	Parked  int `json:"parked"`
}

// The codes of an [Error].
const (
	UnknownGroup  = "unknown-group"
	UnknownJob    = "unknown-job"
	NotDesignated = "not-designated"
	Usage         = "usage"
	Conflict      = "conflict"
	Internal      = "internal"
)

// An Error is what the daemon answers instead of a result.
type Error struct {
	Code    string `json:"code"` // one of the constants; a client bears others
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// status returns the HTTP status that goes with the code.
func (e *Error) status() int {
	switch e.Code {
	case UnknownGroup, UnknownJob:
		return http.StatusNotFound
	case Usage:
		return http.StatusBadRequest
	case NotDesignated, Conflict:
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

// A rotateRequest is the body of POST /v1/rotate.
type rotateRequest struct {
	Groups []string `json:"groups"`
	All    bool     `json:"all"`
}

// A driftRequest is the body of POST /v1/drift.
type driftRequest struct {
	Groups []string `json:"groups"`
}

// A retryRequest is the body of POST /v1/retry.
type retryRequest struct {
	Jobs []string `json:"jobs"`
	All  bool     `json:"all"`
}

// A loginRequest is the body of POST /v1/hsm/login.
type loginRequest struct {
	Name string `json:"name"`
}

// decodeStrict reads exactly one JSON value without unknown fields.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}
