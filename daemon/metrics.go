package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	}
	m.registry.MustRegister(m.jobs, m.durations, m.requests, collector{m})
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

// steps notes how long the steps of a job took.
func (m *metrics) steps(job *lifecycle.Job) {
	for _, s := range job.Steps {
		if s.State == lifecycle.Done && !s.StartedAt.IsZero() {
			m.durations.WithLabelValues(s.Name).Observe(s.FinishedAt.Sub(s.StartedAt).Seconds())
		}
	}
}

// serve answers Prometheus on [metrics] listen until ctx ends.
func (m *metrics) serve(ctx context.Context) {
	address := m.d.cfg.Load().Metrics.Listen
	if address == "" {
		return
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		// Metrics are not what byokd is for: it rotates without them.
		m.d.log.Error("metrics cannot be served", "listen", address, "err", err)
		return
	}
	m.d.log.Info("metrics are served", "listen", listener.Addr().String())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		m.d.log.Error("metrics are no longer served", "err", err)
	}
}

// A collector reads what is so at the moment it is asked.
type collector struct{ m *metrics }

var (
	lastRotationDesc = prometheus.NewDesc("byokd_last_rotation_timestamp_seconds", "When the active generation became active.", []string{"group"}, nil)
	nextRotationDesc = prometheus.NewDesc("byokd_next_rotation_timestamp_seconds", "When the next rotation is due.", []string{"group"}, nil)
	expiryDesc       = prometheus.NewDesc("byokd_active_key_expiry_timestamp_seconds", "ValidTo of the active generation's key material.", []string{"group"}, nil)
	nextExpiryDesc   = prometheus.NewDesc("byokd_next_key_expiry_timestamp_seconds", "Earliest ValidTo of a generation under whose key something can still be decrypted.", []string{"group"}, nil)
	stateDesc        = prometheus.NewDesc("byokd_group_state", "1 for the state that the group is in.", []string{"group", "state"}, nil)
	pendingDesc      = prometheus.NewDesc("byokd_outbox_pending", "Events that have not reached their bus.", nil, nil)
	parkedDesc       = prometheus.NewDesc("byokd_outbox_parked", "Events that EventBridge refused for good.", nil, nil)
	reloadDesc       = prometheus.NewDesc("byokd_config_last_reload_successful", "1 where the last reading of byokd.toml succeeded.", nil, nil)
	sessionsDesc     = prometheus.NewDesc("byokd_hsm_sessions_in_use", "PKCS#11 sessions in use.", []string{"hsm"}, nil)
	hsmErrorsDesc    = prometheus.NewDesc("byokd_hsm_errors_total", "Failed PKCS#11 operations by CKR code.", []string{"hsm", "ckr"}, nil)
	connectedDesc    = prometheus.NewDesc("byokd_hsm_connected", "1 where byokd is logged in to the token.", []string{"hsm"}, nil)
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
	statuses, err := d.Status(ctx, nil)
	if err != nil {
		out <- prometheus.NewInvalidMetric(stateDesc, fmt.Errorf("read the groups: %w", err))
	}
	for _, s := range statuses {
		at(lastRotationDesc, s.LastRotation.Time, s.Group)
		at(nextRotationDesc, s.NextRotation.Time, s.Group)
		at(expiryDesc, s.Active.ValidTo.Time, s.Group)
		gauge(stateDesc, 1, s.Group, s.State)
	}
	if rows, err := d.store.AllGenerations(ctx); err == nil {
		first := make(map[string]time.Time)
		for _, row := range rows {
			if g := generation(row); decrypts(g) && !g.ValidTo.IsZero() && (first[g.Group].IsZero() || g.ValidTo.Before(first[g.Group])) {
				first[g.Group] = g.ValidTo
			}
		}
		for group, t := range first {
			at(nextExpiryDesc, t, group)
		}
	}
	if stats, err := d.store.OutboxStats(ctx); err == nil {
		gauge(pendingDesc, float64(stats.Pending))
		gauge(parkedDesc, float64(stats.Parked))
	}
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
