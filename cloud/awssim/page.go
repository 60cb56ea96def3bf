package awssim

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"time"
)

// A Key is a KMS key, as a test or a page looks at it.
type Key struct {
	Account     string            `json:"account"`
	Region      string            `json:"region"`
	ID          string            `json:"id"`
	ARN         string            `json:"arn"`
	State       string            `json:"state"` // as DescribeKey's KeyState
	Spec        string            `json:"spec"`
	Usage       string            `json:"usage"`
	Origin      string            `json:"origin"`
	Description string            `json:"description"`
	Policy      string            `json:"policy"` // as GetKeyPolicy shows it
	Tags        map[string]string `json:"tags"`
	Aliases     []string          `json:"aliases"`
	Created     time.Time         `json:"created"`
	Deletion    time.Time         `json:"deletion,omitzero"`
	Materials   []Material        `json:"materials"` // oldest first, a pending one last
}

// A Material is key material, as a test or a page looks at it.
type Material struct {
	ID          string    `json:"id"`
	State       string    `json:"state"` // as ListKeyRotations' KeyMaterialState
	Description string    `json:"description,omitempty"`
	Present     bool      `json:"present"`               // false: deleted or expired
	Fingerprint string    `json:"fingerprint,omitempty"` // SHA-256 of the bytes, in hex
	ValidTo     time.Time `json:"valid_to,omitzero"`
}

// Keys returns the KMS keys of an account in a Region, in the order in which
// they were made.
func (s *Sim) Keys(account, region string) []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.realm(place{account, region}, s.now())
	keys := []Key{}
	for _, k := range r.keys {
		keys = append(keys, s.show(r, k))
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return keys
}

// Key returns a key by its ID, and whether there is one.
func (s *Sim) Key(account, region, id string) (Key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.realm(place{account, region}, s.now())
	k := r.keys[id]
	if k == nil {
		return Key{}, false
	}
	return s.show(r, k), true
}

// Alias returns the ID of the key that an alias points at, empty if there is
// no such alias. The name begins with "alias/".
func (s *Sim) Alias(account, region, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.realm(place{account, region}, s.now()).aliases[name]; a != nil {
		return a.target
	}
	return ""
}

func (s *Sim) show(r *realm, k *key) Key {
	shown := Key{
		Account: k.account, Region: k.region, ID: k.id, ARN: k.arn,
		State: k.state(), Spec: k.spec.name, Usage: k.usage, Origin: k.origin,
		Description: k.description, Policy: k.policy,
		Tags: maps.Clone(k.tags), Aliases: slices.Sorted(r.aliasesOf(k.id)),
		Created: k.created, Deletion: k.deletion,
	}
	for _, m := range k.allMaterials() {
		mat := Material{ID: m.id, State: s.materialState(k, m), Description: m.description, ValidTo: m.validTo}
		if m.bytes != nil {
			mat.Present, mat.Fingerprint = true, sha256Hex(m.bytes)
		}
		shown.Materials = append(shown.Materials, mat)
	}
	return shown
}

// allKeys returns the keys of all accounts and Regions.
func (s *Sim) allKeys() []Key {
	s.mu.Lock()
	places := slices.SortedFunc(maps.Keys(s.realms), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.account, b.account), cmp.Compare(a.region, b.region))
	})
	s.mu.Unlock()
	keys := []Key{}
	for _, p := range places {
		keys = append(keys, s.Keys(p.account, p.region)...)
	}
	return keys
}

// A shownAlias is an alias on the page.
type shownAlias struct {
	Account, Region, Name, Target string
	Updated                       time.Time
}

// allAliases returns the aliases of all accounts and Regions.
func (s *Sim) allAliases() []shownAlias {
	s.mu.Lock()
	defer s.mu.Unlock()
	var shown []shownAlias
	for p, r := range s.realms {
		for name, a := range r.aliases {
			shown = append(shown, shownAlias{p.account, p.region, name, a.target, a.updated})
		}
	}
	slices.SortFunc(shown, func(a, b shownAlias) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name))
	})
	return shown
}

// A shownEvent is an event as the page /_awssim/events shows it.
type shownEvent struct {
	Bus      string    `json:"bus"`
	Received time.Time `json:"received"`
	Event    Envelope  `json:"event"`
}

func (s *Sim) shownEvents() []shownEvent {
	shown := []shownEvent{}
	for _, e := range s.Events() {
		shown = append(shown, shownEvent{Bus: e.Bus, Received: e.Received.UTC(), Event: e.Envelope})
	}
	return shown
}

// pageEvents is how many events the page shows, the latest.
const pageEvents = 200

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// servePage answers the requests that are not for AWS: the page and what lies
// below /_awssim/.
func (s *Sim) servePage(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/_awssim/clock":
		s.serveClock(w, r)
		return
	case r.Method == http.MethodPost && r.URL.Path == "/_awssim/principals":
		s.servePrincipals(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET here", http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case "/":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		events := s.shownEvents()
		all := len(events)
		events = events[max(0, all-pageEvents):]
		slices.Reverse(events)
		// A write fails only if the client has gone.
		_ = pageTemplate.Execute(w, map[string]any{
			"Now": s.Now().UTC(), "Keys": s.allKeys(), "Aliases": s.allAliases(), "Rules": s.Rules(), "Events": events, "AllEvents": all,
		})
	case "/_awssim/health":
		writeJSON(w, map[string]any{"status": "ok", "time": s.Now().UTC()})
	case "/_awssim/keys":
		writeJSON(w, s.allKeys())
	case "/_awssim/events":
		writeJSON(w, s.shownEvents())
	case "/_awssim/rules":
		writeJSON(w, s.Rules())
	case "/_awssim/deliveries":
		writeJSON(w, append([]Delivery{}, s.Deliveries()...))
	case "/_awssim/clock":
		writeJSON(w, map[string]any{"time": s.Now().UTC()})
	default:
		http.NotFound(w, r)
	}
}

// readPost reads the body of a POST to the simulator itself. It wants JSON to be
// declared, so that no web page can do it.
func readPost(w http.ResponseWriter, r *http.Request, in any, example string) bool {
	if r.Header.Get("Content-Type") != "application/json" {
		http.Error(w, "send Content-Type: application/json", http.StatusUnsupportedMediaType)
		return false
	}
	body, _, err := readAll(r.Body, 1<<12)
	if err != nil || json.Unmarshal(body, in) != nil {
		http.Error(w, "send "+example, http.StatusBadRequest)
		return false
	}
	return true
}

// serveClock moves the clock: {"advance": "24h"}.
func (s *Sim) serveClock(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Advance string `json:"advance"`
	}
	if !readPost(w, r, &in, `{"advance": "24h"}`) {
		return
	}
	d, err := time.ParseDuration(in.Advance)
	if err != nil || d < 0 {
		http.Error(w, `"advance" must be a duration that is not negative, such as "24h"`, http.StatusBadRequest)
		return
	}
	s.Advance(d)
	writeJSON(w, map[string]any{"time": s.Now().UTC()})
}

// servePrincipals deletes a principal: {"delete": ARN}.
func (s *Sim) servePrincipals(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Delete string `json:"delete"`
	}
	const example = `{"delete": "arn:aws:iam::111122223333:role/NAME"}`
	if !readPost(w, r, &in, example) {
		return
	}
	if !compiled(`arn:aws[a-z-]*:iam::[0-9]{12}:(user|role)/.+`).MatchString(in.Delete) {
		http.Error(w, "send the ARN of a user or role: "+example, http.StatusBadRequest)
		return
	}
	writeJSON(w, map[string]any{"deleted": in.Delete, "unique_id": s.DeletePrincipal(in.Delete)})
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // as in answerJSON
}
