package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// CheckChange checks whether a group may change from one definition to the
// other. Once it has a generation, its HSM, service, kind of key, Region and
// account stay: its keys are where they are. The account is compared where
// byokd.toml gives it for both credentials.
func CheckChange(old, new *Group, hasGeneration bool) Problems {
	if !hasGeneration {
		return nil
	}
	var problems Problems
	compare := func(key, was, is string) {
		if was != is {
			problems = append(problems, new.Problem(key, fmt.Sprintf(
				"cannot change from %q to %q once the group has a key: change it back, or make a new group in a file with another name", was, is)))
		}
	}
	compare("hsm", old.HSM, new.HSM)
	compare("service", old.Service, new.Service)
	compare("key_type", old.KeyType, new.KeyType)
	compare("key_length", strconv.Itoa(old.KeyLength), strconv.Itoa(new.KeyLength))
	compare("key_usage", old.KeyUsage, new.KeyUsage)
	compare("aws.region", old.AWS.Region, new.AWS.Region)
	if old.Account != "" && new.Account != "" && old.Account != new.Account {
		problems = append(problems, new.Problem("credential", fmt.Sprintf(
			"cannot change the account from %s to %s once the group has a key: use a credential of the old account, or make a new group in a file with another name", old.Account, new.Account)))
	}
	problems.sort()
	return problems
}

// follows are the keys and tables of byokd.toml that follow SIGHUP. All others
// need a restart.
var follows = []string{
	"designated", "log", "events", "credentials", "max_jobs", "timezone", "settle", "drift_check", "hooks",
}

// Changes returns the dotted keys in which two configurations differ, sorted:
// those that follow SIGHUP, and those that need a restart. A table [hsm.NAME],
// [credentials.NAME] or [aws.endpoints.REGION] that came or went is one key.
func Changes(old, new *Config) (follow, restart []string) {
	differences("", reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem(), func(key string) {
		top, _, _ := strings.Cut(key, ".")
		if slices.Contains(follows, top) {
			follow = append(follow, key)
		} else {
			restart = append(restart, key)
		}
	})
	slices.Sort(follow)
	slices.Sort(restart)
	return follow, restart
}

// differences reports the keys in which two values of one type differ.
func differences(key string, old, new reflect.Value, report func(key string)) {
	switch {
	case old.Kind() == reflect.Struct && old.Type() != reflect.TypeFor[Attribute]():
		for name, f := range fieldsOf(old.Type()) {
			differences(join(key, name), old.Field(f.index), new.Field(f.index), report)
		}
	case old.Kind() == reflect.Map:
		names := make(map[string]bool)
		for _, m := range []reflect.Value{old, new} {
			for _, k := range m.MapKeys() {
				names[k.String()] = true
			}
		}
		for name := range names {
			k := reflect.ValueOf(name)
			o, n := old.MapIndex(k), new.MapIndex(k)
			if !o.IsValid() || !n.IsValid() {
				report(join(key, name))
				continue
			}
			differences(join(key, name), o, n, report)
		}
	case !reflect.DeepEqual(old.Interface(), new.Interface()):
		report(key)
	}
}
