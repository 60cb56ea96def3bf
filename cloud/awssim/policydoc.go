package awssim

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// rewritten returns the document as KMS keeps it, which is not as it was put:
// members in one order and lay-out, a list of one as a scalar, an account ID as
// the ARN of its root, everybody as {"AWS": "*"}, and values of conditions as
// strings. Statements stay a list, also one alone.
//
// Source: the documents in the API Reference's and the CLI's examples of
// GetKeyPolicy; IAM User Guide, "AWS JSON policy elements: Principal".
func (p *policy) rewritten(region string) string {
	var b bytes.Buffer
	p.document(region).write(&b, "")
	return b.String()
}

func (p *policy) document(region string) object {
	var o object
	o.addString("Version", p.Version)
	o.addString("Id", p.ID)
	statements := []any{}
	for _, s := range p.Statement {
		statements = append(statements, s.document(region))
	}
	return append(o, entry{"Statement", statements})
}

func (s statement) document(region string) object {
	var o object
	o.addString("Sid", s.Sid)
	o.addString("Effect", s.Effect)
	o.addPrincipals("Principal", s.Principal, region)
	o.addPrincipals("NotPrincipal", s.NotPrincipal, region)
	o.addList("Action", s.Action)
	o.addList("NotAction", s.NotAction)
	o.addList("Resource", s.Resource)
	o.addList("NotResource", s.NotResource)
	if len(s.Condition) == 0 {
		return o
	}
	var operators object
	for _, operator := range slices.Sorted(maps.Keys(s.Condition)) {
		var keys object
		for _, key := range slices.Sorted(maps.Keys(s.Condition[operator])) {
			keys.addList(key, s.Condition[operator][key])
		}
		operators = append(operators, entry{operator, keys})
	}
	return append(o, entry{"Condition", operators})
}

// An object is a JSON object with its entries in order. Values are strings,
// objects and lists of them.
type object []entry

type entry struct {
	name  string
	value any
}

func (o *object) addString(name, value string) {
	if value != "" {
		*o = append(*o, entry{name, value})
	}
}

func (o *object) addList(name string, values []string) {
	switch len(values) {
	case 0:
	case 1:
		o.addString(name, values[0])
	default:
		all := make([]any, len(values))
		for i, v := range values {
			all[i] = v
		}
		*o = append(*o, entry{name, all})
	}
}

func (o *object) addPrincipals(name string, p *principals, region string) {
	if p == nil {
		return
	}
	var kinds object
	for _, kind := range slices.Sorted(maps.Keys(p.byKind)) {
		names := slices.Clone(p.byKind[kind])
		for i, each := range names {
			if kind == "AWS" && isAccount(each) {
				names[i] = rootARN(region, each)
			}
		}
		kinds.addList(kind, names)
	}
	*o = append(*o, entry{name, kinds})
}

// write writes the object as AWS lays policies out: two spaces of indentation
// for each object, lists in the line.
func (o object) write(b *bytes.Buffer, indent string) {
	b.WriteString("{")
	for i, m := range o {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString("\n" + indent + "  ")
		writeValue(b, m.name, "")
		b.WriteString(" : ")
		writeValue(b, m.value, indent+"  ")
	}
	b.WriteString("\n" + indent + "}")
}

func writeValue(b *bytes.Buffer, value any, indent string) {
	switch v := value.(type) {
	case object:
		v.write(b, indent)
	case []any:
		b.WriteString("[ ")
		for i, each := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			writeValue(b, each, indent)
		}
		b.WriteString(" ]")
	case string:
		e := json.NewEncoder(b)
		e.SetEscapeHTML(false)
		_ = e.Encode(v) // a string can always be written
		b.Truncate(b.Len() - 1)
	}
}

// DeletePrincipal lets a user or role be deleted, by its ARN: its access keys
// and sessions are refused from now on, and in the place of its ARN the key
// policies that name it have its unique ID, which is returned. A policy with
// such an ID is not accepted.
func (s *Sim) DeletePrincipal(arn string) (uniqueID string) {
	prefix := "AIDA"
	if strings.Contains(arn, ":role/") {
		prefix = "AROA"
	}
	uniqueID = userID(prefix, arn)
	s.mu.Lock()
	s.delete(arn)
	for _, r := range s.realms {
		for _, k := range r.keys {
			p := k.parsedPolicy()
			for _, st := range p.Statement {
				for _, ps := range []*principals{st.Principal, st.NotPrincipal} {
					if ps == nil {
						continue
					}
					for i, name := range ps.byKind["AWS"] {
						if name == arn {
							ps.byKind["AWS"][i] = uniqueID
						}
					}
				}
			}
			k.policy = p.rewritten(k.region)
		}
	}
	s.mu.Unlock()
	s.saveOrLog()
	return uniqueID
}

// delete lets a principal be no more.
func (s *Sim) delete(arn string) {
	s.deleted[arn] = true
	delete(s.policies, arn)
	delete(s.roles, arn)
	maps.DeleteFunc(s.credentials, func(_ string, c Credential) bool { return c.ARN == arn })
	maps.DeleteFunc(s.sessions, func(_ string, each *session) bool { return each.role == arn })
}
