package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"byokd/cloud/awssim"
)

// defaultEndpoint is where a simulator listens that was told nothing else.
const defaultEndpoint = "http://127.0.0.1:4599"

// get reads a page of a running simulator. If that was asked for, it is
// printed as it is, otherwise decoded into v.
func get(ctx context.Context, name string, args []string, stdout, stderr io.Writer, v any) (printed bool, err error) {
	flags := flag.NewFlagSet("awssim "+name, flag.ContinueOnError)
	endpoint := flags.String("endpoint", defaultEndpoint, "`URL` of the simulator")
	asJSON := flags.Bool("json", false, "print JSON")
	if err := parse(flags, args, stderr); err != nil {
		return false, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(*endpoint, "/")+"/_awssim/"+name, nil)
	if err != nil {
		return false, usagef("--endpoint: %w", err)
	}
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return false, fmt.Errorf("ask the simulator, which must be running: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return false, fmt.Errorf("read the answer of %s: %w", *endpoint, err)
	}
	if response.StatusCode != http.StatusOK {
		return false, fmt.Errorf("%s answered %s: is it an awssim?", *endpoint, response.Status)
	}
	if *asJSON {
		_, err := stdout.Write(body)
		return true, err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return false, fmt.Errorf("read the answer of %s: %w", *endpoint, err)
	}
	return false, nil
}

// keys prints the KMS keys that a simulator holds.
func keys(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var keys []awssim.Key
	if printed, err := get(ctx, "keys", args, stdout, stderr, &keys); printed || err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tREGION\tSTATE\tORIGIN\tMATERIAL\tALIASES")
	for _, k := range keys {
		var materials []string
		for _, m := range k.Materials {
			shown := fmt.Sprintf("%.8s", m.ID)
			if !m.Present {
				shown += " (gone)"
			}
			materials = append(materials, shown)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Region, k.State, k.Origin, strings.Join(materials, ", "), strings.Join(k.Aliases, ", "))
	}
	return w.Flush()
}

// events prints the events that arrived at a simulator's buses.
func events(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var events []struct {
		Bus      string          `json:"bus"`
		Received time.Time       `json:"received"`
		Event    awssim.Envelope `json:"event"`
	}
	if printed, err := get(ctx, "events", args, stdout, stderr, &events); printed || err != nil {
		return err
	}
	for _, e := range events {
		var detail bytes.Buffer
		if err := json.Compact(&detail, e.Event.Detail); err != nil {
			return fmt.Errorf("read the event %s: %w", e.Event.ID, err)
		}
		fmt.Fprintf(stdout, "%s  bus %s  %s  %s\n  %s\n", e.Received.UTC().Format(time.RFC3339), e.Bus, e.Event.Source, e.Event.DetailType, &detail)
	}
	return nil
}
