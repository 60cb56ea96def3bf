package lifecycle

import (
	"maps"
	"time"
)

// Detail types of the events that byokd emits.
const (
	AliasMoved      = "KMS Alias Moved"
	MaterialRotated = "KMS Key Material Rotated"
	KeySynchronized = "KMS Key Synchronized"
	MaterialDeleted = "KMS Key Material Deleted"
	KeyDisabled     = "KMS Key Disabled"
	DeletionSet     = "KMS Key Deletion Scheduled"
	RotationFailed  = "BYOK Rotation Failed"
	RotationOverdue = "BYOK Rotation Overdue"
	GroupInvalid    = "BYOK Group Invalid"
	KeyExpiring     = "BYOK Key Expiring"
	DriftDetected   = "BYOK Drift Detected"
)

// eventSchema is the version of the common part of every event's detail.
const eventSchema = 1

// An Origin is what every event says of where it comes from.
type Origin struct {
	Host       string
	Group      string
	Region     string
	Account    string // "": not known
	Credential string
	JobID      string // "": of no job
}

// NewEvent makes an event with the fields that every event has, and further
// ones of its detail type.
func NewEvent(now time.Time, o Origin, detailType string, resources []string, further map[string]any) Event {
	id := NewID(now)
	detail := map[string]any{
		"schema":      eventSchema,
		"event_id":    id,
		"group":       o.Group,
		"host":        o.Host,
		"occurred_at": now.UTC().Format(time.RFC3339Nano),
		"region":      orNull(o.Region),
		"account":     orNull(o.Account),
		"job_id":      orNull(o.JobID),
	}
	maps.Copy(detail, further)
	return Event{ID: id, Group: o.Group, DetailType: detailType, Detail: mustJSON(detail), Resources: resources,
		OccurredAt: now, JobID: o.JobID, Region: o.Region, Account: o.Account, Credential: o.Credential}
}

// orNull is s, or JSON's null for "".
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// timeOrNull is t in RFC 3339, or JSON's null for the zero time.
func timeOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339)
}

// emit adds an event of this job to the change, and the record of the announce
// step with it, so that the fact and its event are one transaction. An
// announcement that nobody wants is recorded as skipped.
func (r *run) emit(c *Change, detailType, account string, resources []string, further map[string]any) {
	now := r.now()
	s := Step{Name: "announce", State: Done, StartedAt: now, FinishedAt: now}
	if id := r.event(c, detailType, account, resources, further); id != "" {
		s.Message = detailType + " queued as event " + id
	} else {
		s.State, s.Message = Skipped, "[events] enabled = false"
	}
	for i := range c.Steps {
		if c.Steps[i].Name == s.Name {
			if s.State == Done && c.Steps[i].State == Done {
				s.Message = c.Steps[i].Message + "; " + s.Message
			}
			c.Steps[i] = s
			return
		}
	}
	c.Steps = append(c.Steps, s)
}

// event adds an event of this job to the change and returns its ID; "" when
// events are not wanted.
func (r *run) event(c *Change, detailType, account string, resources []string, further map[string]any) string {
	if r.Announce != nil && !r.Announce() {
		return ""
	}
	event := NewEvent(r.now(), Origin{Host: r.Host, Group: r.job.Group, Region: r.def.Region, Account: account,
		Credential: r.def.Credential, JobID: r.job.ID}, detailType, resources, further)
	c.Events = append(c.Events, event)
	return event.ID
}

// emitNothing records the announce step of a job that has nothing to announce.
func (r *run) emitNothing(c *Change) {
	now := r.now()
	c.Steps = append(c.Steps, Step{Name: "announce", State: Skipped, StartedAt: now, FinishedAt: now, Message: "nothing changed"})
}

// resources lists the ARNs that are there, without repeats.
func resources(arns ...string) []string {
	var list []string
	seen := map[string]bool{"": true}
	for _, a := range arns {
		if !seen[a] {
			list, seen[a] = append(list, a), true
		}
	}
	return list
}
