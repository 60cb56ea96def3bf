package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"byokd/config"
	"byokd/daemon"
	"byokd/daemon/control"
)

// checkOnline looks at the configuration and at everything around it, and prints
// what it finds, line by line.
func (t *tool) checkOnline(ctx context.Context) error {
	s, err := t.read(nil)
	if err != nil {
		return err
	}
	var all []daemon.Finding
	report := func(f daemon.Finding) {
		all = append(all, f)
		if !t.json {
			fmt.Fprintf(t.out, "%-8s %s: %s\n", f.State, f.Subject, oneLine(f.Message))
		}
	}
	problems := s.problems()
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		for _, p := range problems[name] {
			report(daemon.Finding{Subject: "group " + name, State: daemon.FindingFailed, Message: p.String()})
		}
	}
	for _, p := range s.cfg.Missing() {
		if !strings.HasSuffix(p.Key, "_credential") {
			report(daemon.Finding{Subject: "byokd.toml", State: daemon.FindingFailed, Message: p.String()})
		}
	}
	t.checkTokens(ctx, s.cfg, report)
	cfg, err := t.loadAsDaemon()
	if err != nil {
		report(daemon.Finding{Subject: "secrets", State: daemon.FindingFailed, Message: fmt.Sprintf("%v; run this as root or as byokd's user", err)})
		cfg = s.cfg
	}
	var groups []*config.Group
	for _, name := range slices.Sorted(maps.Keys(s.set.Groups)) {
		if problems[name] == nil {
			groups = append(groups, s.set.Groups[name])
		}
	}
	if len(groups) == 0 {
		report(daemon.Finding{Subject: "groups", State: daemon.FindingUnknown, Message: "there is no good group, so no Region and no AWS to look at: byokctl new GROUP writes one"})
	}
	daemon.CheckOnline(ctx, cfg, groups, report)

	if t.json {
		if err := t.printJSON(control.List[daemon.Finding](all)); err != nil {
			return err
		}
	}
	count := make(map[string]int)
	for _, f := range all {
		count[f.State]++
	}
	if n := count[daemon.FindingFailed]; n > 0 {
		return failed("%d of %d checks failed", n, len(all))
	}
	if !t.json {
		fmt.Fprintf(t.out, "nothing failed: %d ok, %d warnings, %d not known\n", count[daemon.FindingOK], count[daemon.FindingWarning], count[daemon.FindingUnknown])
	}
	return nil
}

// checkTokens looks at the tokens: through the daemon where one runs, else itself.
func (t *tool) checkTokens(ctx context.Context, cfg *config.Config, report func(daemon.Finding)) {
	client, err := t.connect()
	var hsms []control.HSMStatus
	if err == nil {
		defer client.Close()
		hsms, err = client.HSM(ctx)
	}
	switch {
	case err == nil:
		report(daemon.Finding{Subject: "byokd", State: daemon.FindingOK, Message: "runs, and was asked about the tokens"})
	case errors.Is(err, control.ErrUnreachable):
		report(daemon.Finding{Subject: "byokd", State: daemon.FindingWarning, Message: fmt.Sprintf("does not run, or not for you: %v", err)})
		var own *config.Config
		if own, err = t.loadAsDaemon(); err == nil {
			hsms, err = daemon.LookAtHSMs(ctx, own, "", fmt.Sprintf("uid %d", os.Getuid()))
		}
	}
	if err != nil {
		report(daemon.Finding{Subject: "tokens", State: daemon.FindingFailed, Message: fmt.Sprintf("cannot be looked at: %v", err)})
		return
	}
	if len(hsms) == 0 {
		report(daemon.Finding{Subject: "tokens", State: daemon.FindingFailed, Message: "there is no [hsm.NAME] in " + cfg.Path + ": add one"})
	}
	for _, h := range hsms {
		subject := "token of [hsm." + h.Name + "]"
		switch {
		case h.LoginBlocked != "":
			report(daemon.Finding{Subject: subject, State: daemon.FindingFailed, Message: fmt.Sprintf("byokd does not log in: %s; when the PIN is right: byokctl hsm --login %s", h.LoginBlocked, h.Name)})
		case h.State == control.HSMConnecting:
			report(daemon.Finding{Subject: subject, State: daemon.FindingUnknown, Message: "byokd has just begun to look for it: ask again"})
		case h.Error != "" || !h.Connected:
			report(daemon.Finding{Subject: subject, State: daemon.FindingFailed, Message: fmt.Sprintf("%s: %s", h.State, text(h.Error))})
		case h.Algorithm == "" && len(h.Proofs) == 0:
			report(daemon.Finding{Subject: subject, State: daemon.FindingUnknown, Message: "logged in; its self-test has not ended yet: ask again"})
		case h.Algorithm == "":
			report(daemon.Finding{Subject: subject, State: daemon.FindingFailed, Message: "it can wrap keys in none of the ways that AWS takes: byokctl hsm shows what was tried"})
		default:
			report(daemon.Finding{Subject: subject, State: daemon.FindingOK, Message: fmt.Sprintf("%s, serial %s: logged in, wraps with %s, proven by a self-test", text(h.TokenLabel), text(h.TokenSerial), h.Algorithm)})
		}
	}
}
