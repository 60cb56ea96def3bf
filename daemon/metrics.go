package daemon

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// metrics are what Prometheus sees of byokd. Counters are kept as things
// happen, everything else is read when it is asked for.
type metrics struct {
	d         *Daemon
	registry  *prometheus.Registry
	jobs      *prometheus.CounterVec
	durations *prometheus.HistogramVec
	requests  *prometheus.CounterVec
	hooks     *prometheus.CounterVec
}

func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		d:        d,
		registry: prometheus.NewRegistry(),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "byokd_jobs_total",
			Help: "Attempts at jobs by how they ended: completed, or the class of their error."}, []string{"group", "kind", "result"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "byokd_step_duration_seconds",
			Help: "How long the steps of completed jobs took.", Buckets: prometheus.ExponentialBuckets(0.005, 3, 10)}, []string{"step"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "byokd_aws_requests_total",
			Help: "Requests sent to AWS by operation and answer."}, []string{"operation", "code"}),
		hooks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "byokd_hook_runs_total",
			Help: "Runs of the commands of [hooks] by how they ended: ok or failed."}, []string{"hook", "result"}),
	}
	m.registry.MustRegister(m.jobs, m.durations, m.requests, m.hooks, collector{m})
	return m
}

// request counts a request to AWS.
func (m *metrics) request(operation, code string, _ time.Duration) {
	m.requests.WithLabelValues(operation, code).Inc()
}

// job counts an attempt at a job.
func (m *metrics) job(row *jobstore.Job, err error) {
	result := "completed"
	if err != nil {
		result = string(lifecycle.ClassOf(err))
	}
	m.jobs.WithLabelValues(row.Group, row.Kind, result).Inc()
}

// forget removes what is told of a group that is none any more, having been renamed.
func (m *metrics) forget(group string) {
	m.jobs.DeletePartialMatch(prometheus.Labels{"group": group})
}

// steps notes how long the steps of a job took.
func (m *metrics) steps(job *lifecycle.Job) {
	for _, s := range job.Steps {
		if s.State == lifecycle.Done && !s.StartedAt.IsZero() {
			m.durations.WithLabelValues(s.Name).Observe(s.FinishedAt.Sub(s.StartedAt).Seconds())
		}
	}
}

// handler answers Prometheus.
func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}

// serve answers Prometheus on [metrics] listen until ctx ends.
func (m *metrics) serve(ctx context.Context) {
	m.d.listeners.serve(ctx, "metrics", m.d.cfg.Load().Metrics.Listen, nil, m.handler())
}

// A collector reads what is so at the moment it is asked.
type collector struct{ m *metrics }

var (
	lastRotationDesc = prometheus.NewDesc("byokd_last_rotation_timestamp_seconds", "When the active generation became active.", []string{"group"}, nil)
	nextRotationDesc = prometheus.NewDesc("byokd_next_rotation_timestamp_seconds", "When the next rotation is due.", []string{"group"}, nil)
	expiryDesc       = prometheus.NewDesc("byokd_active_key_expiry_timestamp_seconds", "ValidTo of the active generation's key material.", []string{"group"}, nil)
	nextExpiryDesc   = prometheus.NewDesc("byokd_next_key_expiry_timestamp_seconds", "Earliest ValidTo of a generation under whose key something can still be decrypted.", []string{"group"}, nil)
	driftDesc        = prometheus.NewDesc("byokd_drift_differences", "What AWS had otherwise than byokd when they were last compared.", []string{"group"}, nil)
	driftCheckedDesc = prometheus.NewDesc("byokd_last_drift_check_timestamp_seconds", "When AWS was last compared with what byokd knows.", []string{"group"}, nil)
	stateDesc        = prometheus.NewDesc("byokd_group_state", "1 for the state that the group is in.", []string{"group", "state"}, nil)
	pendingDesc      = prometheus.NewDesc("byokd_outbox_pending", "Events that have not reached their bus.", nil, nil)
	parkedDesc       = prometheus.NewDesc("byokd_outbox_parked", "Events that EventBridge refused for good.", nil, nil)
	oldestDesc       = prometheus.NewDesc("byokd_outbox_oldest_pending_timestamp_seconds", "When the oldest event occurred that has not reached its bus; no sample where there is none.", nil, nil)
	overdueDesc      = prometheus.NewDesc("byokd_overdue_since_timestamp_seconds", "The due time of a rotation that is late by more than overdue_after; no sample where none is.", []string{"group"}, nil)
	problemDesc      = prometheus.NewDesc("byokd_group_problems", "Problems of a group by code, as in byokctl status.", []string{"group", "code"}, nil)
	hookWaitingDesc  = prometheus.NewDesc("byokd_hook_events_waiting", "Events that a hook's command is still to be run for.", []string{"hook"}, nil)
	buildDesc        = prometheus.NewDesc("byokd_build_info", "1, with byokd's version.", []string{"version", "goversion"}, nil)
	reloadDesc       = prometheus.NewDesc("byokd_config_last_reload_successful", "1 where the last reading of byokd.toml succeeded.", nil, nil)
	sessionsDesc     = prometheus.NewDesc("byokd_hsm_sessions_in_use", "PKCS#11 sessions in use.", []string{"hsm"}, nil)
	hsmErrorsDesc    = prometheus.NewDesc("byokd_hsm_errors_total", "Failed PKCS#11 operations by CKR code.", []string{"hsm", "ckr"}, nil)
	connectedDesc    = prometheus.NewDesc("byokd_hsm_connected", "1 where byokd is logged in to the token.", []string{"hsm"}, nil)
	commitsDesc      = prometheus.NewDesc("byokd_database_commits_total", "Transactions committed to the database, each of which waits for the disk.", nil, nil)
	designatedDesc   = prometheus.NewDesc("byokd_designated", "1 where this is the designated device.", nil, nil)
)

// Describe tells nothing: the metrics depend on the groups that there are.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the state of groups, outbox and tokens.
func (c collector) Collect(out chan<- prometheus.Metric) {
	d := c.m.d
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	at := func(desc *prometheus.Desc, t time.Time, group string) {
		if !t.IsZero() {
			gauge(desc, float64(t.UnixMilli())/1000, group)
		}
	}
	groups, err := d.states(ctx, nil)
	var shared common
	if err == nil {
		shared, err = d.common(ctx)
	}
	if err != nil {
		out <- prometheus.NewInvalidMetric(stateDesc, fmt.Errorf("read the groups: %w", err))
		groups = nil
	}
	differences := make(map[string]int)
	rows, driftErr := d.store.Drift(ctx)
	for _, row := range rows {
		differences[row.Group]++
	}
	for _, g := range groups {
		s := d.whole(g, shared)
		at(lastRotationDesc, s.LastRotation.Time, s.Group)
		at(nextRotationDesc, s.NextRotation.Time, s.Group)
		at(expiryDesc, s.Active.ValidTo.Time, s.Group)
		at(nextExpiryDesc, g.shown.nextEnd, s.Group)
		gauge(stateDesc, 1, s.Group, s.State)
		problems := make(map[string]int)
		for _, p := range s.Problems {
			problems[p.Code]++
			if p.Code == "overdue" {
				at(overdueDesc, p.Since.Time, s.Group)
			}
		}
		for code, n := range problems {
			gauge(problemDesc, float64(n), s.Group, code)
		}
		if driftErr == nil && !g.row.DriftChecked.IsZero() {
			gauge(driftDesc, float64(differences[s.Group]), s.Group)
			at(driftCheckedDesc, g.row.DriftChecked, s.Group)
		}
	}
	if stats, err := d.store.OutboxStats(ctx); err == nil {
		gauge(pendingDesc, float64(stats.Pending))
		gauge(parkedDesc, float64(stats.Parked))
		if !stats.Oldest.IsZero() {
			gauge(oldestDesc, float64(stats.Oldest.UnixMilli())/1000)
		}
	}
	if hooks, err := d.store.Hooks(ctx); err == nil {
		for _, h := range hooks {
			gauge(hookWaitingDesc, float64(h.Waiting), h.Name)
		}
	}
	out <- prometheus.MustNewConstMetric(commitsDesc, prometheus.CounterValue, float64(d.store.Commits()))
	gauge(buildDesc, 1, d.Version, runtime.Version())
	gauge(reloadDesc, boolValue(d.reloaded.Load().OK))
	gauge(designatedDesc, boolValue(d.cfg.Load().Designated))
	for name, t := range d.tokens.m {
		stats := t.token.Stats()
		gauge(sessionsDesc, float64(stats.SessionsInUse), name)
		gauge(connectedDesc, boolValue(t.token.Info().Connected), name)
		for ckr, n := range stats.Errors {
			out <- prometheus.MustNewConstMetric(hsmErrorsDesc, prometheus.CounterValue, float64(n), name, ckr)
		}
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
