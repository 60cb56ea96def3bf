package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// A player replays one case.
type player struct {
	target    endpoint
	materials map[string]material
	made      map[string]madeMaterial
	saved     map[string]any    // answers by their name
	bound     map[string]string // values by numbered placeholder
	uid       string
	keys      []any // that were made
	aliases   []any
}

func newPlayer(target endpoint, materials map[string]material) *player {
	b := make([]byte, 8)
	rand.Read(b)
	return &player{
		target: target, materials: materials, made: make(map[string]madeMaterial), saved: make(map[string]any),
		bound: make(map[string]string), uid: hex.EncodeToString(b),
	}
}

// pause is between two looks at something that is to change.
const pause = 200 * time.Millisecond

// cleanUp gives up what the case made, as well as it can: aliases are deleted,
// keys after AWS's shortest waiting period.
func (p *player) cleanUp(ctx context.Context) {
	for _, name := range p.aliases {
		_, _ = p.target.send(ctx, "DeleteAlias", map[string]any{"AliasName": name})
	}
	for _, id := range p.keys {
		_, _ = p.target.send(ctx, "ScheduleKeyDeletion", map[string]any{"KeyId": id, "PendingWindowInDays": 7})
	}
}

func (p *player) play(ctx context.Context, s step) error {
	if s.Op == "SQS message body" {
		return p.playDelivered(ctx, s)
	}
	request, err := p.value(s.Request)
	if err != nil {
		return err
	}
	a, err := p.target.send(ctx, s.Op, request)
	if err != nil {
		return err
	}
	switch {
	case a.code != "":
	case s.Op == "CreateKey":
		p.keys = append(p.keys, field(a.body, "KeyMetadata.KeyId"))
	case s.Op == "CreateAlias":
		p.aliases = append(p.aliases, field(request, "AliasName"))
	}
	for began := time.Now(); s.Poll != nil && a.code == ""; {
		done, err := p.reached(*s.Poll, a)
		if err != nil {
			return err
		}
		if done {
			break
		}
		if time.Since(began).Seconds() > s.Poll.Timeout {
			return fmt.Errorf("%s did not change in %v s", s.Poll.Field, s.Poll.Timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		if a, err = p.target.send(ctx, s.Op, request); err != nil {
			return err
		}
	}
	return p.check(s, a)
}

func (p *player) reached(condition poll, a answer) (bool, error) {
	got := field(a.body, condition.Field)
	if condition.NotEqual != nil {
		other, err := p.value(condition.NotEqual)
		return !reflect.DeepEqual(got, other), err
	}
	want, err := p.value(condition.Equal)
	return reflect.DeepEqual(got, want), err
}

// check compares an answer with what was recorded or asserted.
func (p *player) check(s step, a answer) error {
	switch {
	case s.Error != nil:
		if s.Error.HTTP != 0 && a.status != s.Error.HTTP {
			return fmt.Errorf("status %d, %s %q; recorded is %d, %s", a.status, p.shown(a), a.message, s.Error.HTTP, s.Error.Code)
		}
		if a.code != s.Error.Code {
			return fmt.Errorf("%s %q; recorded is %s", p.shown(a), a.message, s.Error.Code)
		}
		if s.Error.Message != nil {
			if err := p.match("message", *s.Error.Message, a.message); err != nil {
				return err
			}
		}
		return nil
	case s.AssertedError != nil:
		if a.code != s.AssertedError.Code {
			return fmt.Errorf("%s %q; asserted is %s", p.shown(a), a.message, s.AssertedError.Code)
		}
		return nil
	case a.code != "" || a.status != 200:
		return fmt.Errorf("%s %q; it succeeded at AWS", p.shown(a), a.message)
	}
	var got any = a.body
	if s.Unwrap != "" {
		got = field(got, s.Unwrap)
	}
	if s.Save != "" {
		p.saved[s.Save] = got
	}
	if s.Response != nil {
		if err := p.match("answer", s.Response, got); err != nil {
			return err
		}
	}
	for name, want := range s.AssertedFields {
		w, err := p.value(want)
		if err != nil {
			return err
		}
		if have := field(got, name); !reflect.DeepEqual(have, w) {
			return fmt.Errorf("%s is %v; asserted is %v", name, have, w)
		}
	}
	for _, pair := range s.AssertedEqual {
		if len(pair) != 2 {
			return errSkip{"an assertion that is no pair"}
		}
		one, err := p.value(pair[0])
		if err != nil {
			return err
		}
		other, err := p.value(pair[1])
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(one, other) {
			return fmt.Errorf("%v is %v, not %v", pair[0], one, other)
		}
	}
	return nil
}

func (p *player) shown(a answer) string {
	if a.code == "" {
		return "success"
	}
	return a.code
}

// playDelivered puts the event of a recorded delivery on the default bus, and
// compares what arrived. Only awssim can say what arrived.
func (p *player) playDelivered(ctx context.Context, s step) error {
	recorded, _ := s.Response.(map[string]any)
	detail, err := json.Marshal(recorded["detail"])
	if err != nil {
		return err
	}
	a, err := p.target.send(ctx, "PutEvents", map[string]any{"Entries": []any{map[string]any{
		"Source": recorded["source"], "DetailType": recorded["detail-type"], "Detail": string(detail),
	}}})
	if err != nil {
		return err
	}
	events, err := p.target.arrived(ctx)
	if err != nil {
		return err
	}
	entries, _ := a.body["Entries"].([]any)
	for _, e := range events {
		if len(entries) == 1 && field(entries[0], "EventId") == e["id"] {
			return p.match("event", s.Response, e)
		}
	}
	return fmt.Errorf("the event did not arrive")
}

// field returns a member of a member, by a dotted path.
func field(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[name]
	}
	return v
}

// value makes a value of a request: references are replaced by what was saved,
// and forms such as $bytes and $wrap by what they stand for.
func (p *player) value(v any) (any, error) {
	switch v := v.(type) {
	case string:
		return p.text(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			var err error
			if list[i], err = p.value(v[i]); err != nil {
				return nil, err
			}
		}
		return list, nil
	case map[string]any:
		if len(v) == 1 {
			for name, argument := range v {
				if strings.HasPrefix(name, "$") {
					return p.form(name, argument)
				}
			}
		}
		object := make(map[string]any)
		for name, each := range v {
			var err error
			if object[name], err = p.value(each); err != nil {
				return nil, err
			}
		}
		return object, nil
	}
	return v, nil
}

// bigDetail is more than PutEvents takes.
var bigDetail = `{"a":"` + strings.Repeat("x", 1<<20) + `"}`

func (p *player) text(s string) (any, error) {
	switch s {
	case "<now>":
		return time.Now().Unix(), nil
	case "<256 KiB of JSON>":
		return bigDetail, nil
	}
	if name, ok := strings.CutPrefix(s, "<"); ok && strings.HasSuffix(name, ">") {
		return strings.ReplaceAll(strings.TrimSuffix(name, ">"), " ", "-") + "-" + p.uid, nil // a name that nothing has
	}
	s = strings.ReplaceAll(s, "$uid", p.uid)
	s = strings.ReplaceAll(s, "$account", p.target.account)
	if s = strings.ReplaceAll(s, "$region", p.target.region); !strings.HasPrefix(s, "$") {
		return s, nil
	}
	name, path, hasPath := strings.Cut(s[1:], ".")
	saved, ok := p.saved[name]
	if !ok {
		return nil, errSkip{"it refers to " + s + ", which no step saved"}
	}
	if !hasPath {
		return saved, nil
	}
	return field(saved, path), nil
}

// blob returns the bytes of a value that is a blob, which JSON has in base64.
func (p *player) blob(v any) ([]byte, error) {
	made, err := p.value(v)
	if err != nil {
		return nil, err
	}
	s, ok := made.(string)
	if !ok {
		return nil, errSkip{fmt.Sprintf("%v is not a blob", v)}
	}
	return base64.StdEncoding.DecodeString(s)
}

func encodeBlob(b []byte, err error) (any, error) {
	return base64.StdEncoding.EncodeToString(b), err
}

// form makes the value of a form.
func (p *player) form(name string, argument any) (any, error) {
	list, _ := argument.([]any)
	text, _ := argument.(string)
	switch name {
	case "$bytes":
		s, err := p.text(text)
		return base64.StdEncoding.EncodeToString(fmt.Append(nil, s)), err
	case "$slice":
		if len(list) != 2 {
			break
		}
		b, err := p.blob(list[0])
		offset, ok := list[1].(json.Number)
		n, badNumber := offset.Int64()
		if !ok || badNumber != nil || err != nil || n > int64(len(b)) {
			return nil, errSkip{"a $slice that cannot be cut"}
		}
		return encodeBlob(b[n:], nil)
	case "$concat":
		var all []byte
		for _, each := range list {
			if s, ok := each.(string); ok && !strings.HasPrefix(s, "$") {
				all = append(all, s...)
				continue
			}
			b, err := p.blob(each)
			if err != nil {
				return nil, err
			}
			all = append(all, b...)
		}
		return encodeBlob(all, nil)
	case "$alias_arn":
		alias, err := p.text(text)
		return fmt.Sprintf("arn:%s:kms:%s:%s:%s", partition(p.target.region), p.target.region, p.target.account, alias), err
	case "$arn_with_id":
		if len(list) != 2 {
			break
		}
		made, err := p.value(argument)
		if err != nil {
			return nil, err
		}
		parts := made.([]any)
		arn, isARN := parts[0].(string)
		id, isID := parts[1].(string)
		if object, ok := parts[0].(map[string]any); ok {
			arn, isARN = object["Arn"].(string)
		}
		if !isARN || !isID {
			break
		}
		return arn[:strings.LastIndex(arn, "/")+1] + id, nil
	case "$json":
		made, err := p.value(argument)
		s, ok := made.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("%v is no text", made)
		}
		var parsed any
		return parsed, p.parse(s, &parsed)
	case "$spki":
		m, err := p.material(text)
		return base64.StdEncoding.EncodeToString(m.public), err
	case "$wrap":
		return p.wrap(argument)
	}
	return nil, errSkip{"the form " + name + " is not known"}
}

func (p *player) parse(s string, v *any) error { return decode([]byte(s), v) }

func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}
