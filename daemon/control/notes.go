package control

import (
	"fmt"
	"strings"
)

// manyWaiting is how many events may wait for a hook before it is told of.
const manyWaiting = 10

// Notes are what a person should know of the daemon as a whole, a line each.
func (d DaemonStatus) Notes() []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if !d.Designated {
		note("not designated: %s changes nothing in AWS and HSM (designated = false in %s)", d.Host, d.Config)
	}
	if !d.LastReload.OK {
		note("byokd.toml could not be reloaded (%s), what was read before still holds: %s", d.LastReload.At.Minute(), d.LastReload.Error)
	}
	if len(d.LastReload.Restart) > 0 {
		note("byokd.toml has changed in what a reload does not take over: %s; systemctl restart byokd, and running jobs go on after it", strings.Join(d.LastReload.Restart, ", "))
	}
	for _, h := range d.HSMs {
		switch {
		case h.LoginBlocked != "":
			note("HSM %s: no login: %s; when the PIN is right: byokctl hsm --login %s", h.Name, h.LoginBlocked, h.Name)
		case h.Error != "":
			note("HSM %s is %s: %s", h.Name, h.State, h.Error)
		case !h.Connected:
			note("HSM %s is %s", h.Name, h.State)
		}
	}
	if d.Outbox.Pending > 0 || d.Outbox.Parked > 0 {
		note("events not sent: %d waiting, %d parked", d.Outbox.Pending, d.Outbox.Parked)
	}
	for _, h := range d.Hooks {
		switch {
		case h.Error != "":
			note("hook %q failed: %s; mend its command, then reload byokd", h.On, h.Error)
		case h.Waiting > manyWaiting:
			note("hook %q is behind: %d events wait for it", h.On, h.Waiting)
		}
	}
	for _, p := range d.Problems {
		notes = append(notes, p.String())
	}
	type place struct{ url, region string }
	services := make(map[place][]string)
	var places []place
	for _, e := range d.Endpoints {
		p := place{e.URL, string(e.Region)}
		if services[p] == nil {
			places = append(places, p)
		}
		services[p] = append(services[p], e.Service)
	}
	for _, p := range places {
		of := services[p]
		what, is, where := "endpoint", "is", ""
		if len(of) > 1 {
			what, is = "endpoints", "are"
		}
		if p.region != "" {
			where = " in " + p.region
		}
		note("%s of %s%s %s overridden: %s", what, strings.Join(of, ", "), where, is, p.url)
	}
	return notes
}

// String is the problem in one line.
func (p Problem) String() string {
	s := p.Code + ": " + p.Message
	if !p.Since.IsZero() {
		s += " (since " + p.Since.Minute() + ")"
	}
	return s
}

// Minute is the time to the minute for a person, or "-" where it is unknown.
func (t Time) Minute() string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04Z")
}
