package awssim

import (
	"errors"
	"iter"
	"maps"
	"strings"
	"time"
)

// maxAliases is AWS's quota of aliases per key.
const maxAliases = 50

// An alias points at a key of the same account and Region.
type alias struct {
	target           string // key ID
	created, updated time.Time
}

// checkAliasName refuses what cannot name an alias of a customer.
func checkAliasName(name string) error {
	rest, ok := strings.CutPrefix(name, "alias/")
	switch {
	case !ok:
		return fail("ValidationException", `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`)
	case rest == "":
		return fail("InvalidAliasNameException", "An alias needs a name after the prefix.")
	case strings.Contains(rest, ":"):
		return fail("ValidationException", "%s contains invalid characters for an alias", name)
	case strings.HasPrefix(rest, "aws/"):
		return fail("InvalidAliasNameException", "Aliases beginning with alias/aws/ are reserved.")
	}
	return nil
}

// target finds the key that an alias is to point at.
func (c *call) target(name string) (*key, error) {
	if strings.HasPrefix(name, "alias/") || strings.Contains(name, ":alias/") {
		return nil, fail("ValidationException", "Aliases must refer to keys. Not aliases")
	}
	k, err := c.key(name)
	if err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	return k, nil
}

// aliasesOf returns the names of a key's aliases.
func (r *realm) aliasesOf(id string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name, a := range r.aliases {
			if (id == "" || a.target == id) && !yield(name) {
				return
			}
		}
	}
}

func (r *realm) countAliases(id string) int {
	n := 0
	for range r.aliasesOf(id) {
		n++
	}
	return n
}

type aliasInput struct {
	AliasName   *string `required:"" len:"1,256" pattern:"^[a-zA-Z0-9:/_-]+$"`
	TargetKeyId *string `required:"" len:"1,2048"`
}

func (c *call) createAlias(in *aliasInput) (any, error) {
	if err := checkAliasName(*in.AliasName); err != nil {
		return nil, err
	}
	k, err := c.target(*in.TargetKeyId)
	if err != nil {
		return nil, err
	}
	if c.realm.aliases[*in.AliasName] != nil {
		return nil, fail("AlreadyExistsException", "An alias with the name %s already exists", c.realm.arn("kms", *in.AliasName))
	}
	if c.realm.countAliases(k.id) >= maxAliases {
		return nil, fail("LimitExceededException", "The key %s has %d aliases, which is the limit.", k.arn, maxAliases)
	}
	c.changeAlias(*in.AliasName, &alias{target: k.id, created: c.now, updated: c.now})
	return nil, nil
}

func (c *call) updateAlias(in *aliasInput) (any, error) {
	a, err := c.alias(*in.AliasName)
	if err != nil {
		return nil, err
	}
	k, err := c.target(*in.TargetKeyId)
	if err != nil {
		return nil, err
	}
	old := c.realm.keys[a.target]
	if old.usage != k.usage {
		return nil, fail("ValidationException", "Alias %s cannot be changed from a CMK with key usage %s to a CMK with key usage %s. "+
			"The key usage of the current CMK and the new CMK must be the same.", *in.AliasName, old.usage, k.usage)
	}
	if !old.spec.kind.sameType(k.spec.kind) {
		return nil, fail("ValidationException", "Alias %s cannot be changed from a key of spec %s to a key of spec %s. "+
			"The current key and the new key must be of the same type.", *in.AliasName, old.spec.name, k.spec.name)
	}
	if old != k && c.realm.countAliases(k.id) >= maxAliases {
		return nil, fail("LimitExceededException", "The key %s has %d aliases, which is the limit.", k.arn, maxAliases)
	}
	c.changeAlias(*in.AliasName, &alias{target: k.id, created: a.created, updated: c.now})
	return nil, nil
}

type deleteAliasInput struct {
	AliasName *string `required:"" len:"1,256" pattern:"^[a-zA-Z0-9:/_-]+$"`
}

func (c *call) deleteAlias(in *deleteAliasInput) (any, error) {
	if _, err := c.alias(*in.AliasName); err != nil {
		return nil, err
	}
	c.changeAlias(*in.AliasName, nil)
	return nil, nil
}

// alias finds an alias that is to be changed.
func (c *call) alias(name string) (*alias, error) {
	err := checkAliasName(name)
	e, _ := errors.AsType[*apiError](err)
	a := c.realm.aliases[name]
	switch {
	case e != nil && e.code != "InvalidAliasNameException": // which only CreateAlias has
		return nil, err
	case a == nil:
		return nil, fail("NotFoundException", "Alias %s is not found.", c.realm.arn("kms", name))
	}
	return a, nil
}

type listAliasesInput struct {
	KeyId  *string `len:"1,2048"`
	Limit  *int64  `range:"1,100"`
	Marker *string `len:"1,1024"`
}

func (c *call) listAliases(in *listAliasesInput) (any, error) {
	id := ""
	if in.KeyId != nil {
		k, err := c.key(*in.KeyId)
		if err != nil {
			return nil, err
		}
		id = k.id
	}
	seen := c.readAliases()
	maps.DeleteFunc(seen, func(_ string, a *alias) bool { return id != "" && a.target != id })
	names, more, err := page(c, maps.Keys(seen), in.Limit, 50, in.Marker)
	if err != nil {
		return nil, err
	}
	aliases := []fields{}
	for _, name := range names {
		a := seen[name]
		aliases = append(aliases, fields{
			"AliasName": name, "AliasArn": c.realm.arn("kms", name), "TargetKeyId": a.target,
			"CreationDate": timestamp{a.created}, "LastUpdatedDate": timestamp{a.updated},
		})
	}
	return more.into(fields{"Aliases": aliases}), nil
}
