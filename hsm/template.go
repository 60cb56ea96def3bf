package hsm

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"
)

// omit in a key template leaves an attribute of byokd's own out.
const omit = "omit"

// attributeNames are the attributes of a secret key that a key template may
// name (PKCS#11 2.40, sections 4.4, 4.7 and 4.10). All but the first two are
// CK_BBOOL.
var attributeNames = map[string]uint{
	"CKA_CLASS":             pkcs11.CKA_CLASS,
	"CKA_KEY_TYPE":          pkcs11.CKA_KEY_TYPE,
	"CKA_EXTRACTABLE":       pkcs11.CKA_EXTRACTABLE,
	"CKA_ENCRYPT":           pkcs11.CKA_ENCRYPT,
	"CKA_DECRYPT":           pkcs11.CKA_DECRYPT,
	"CKA_SIGN":              pkcs11.CKA_SIGN,
	"CKA_VERIFY":            pkcs11.CKA_VERIFY,
	"CKA_WRAP":              pkcs11.CKA_WRAP,
	"CKA_UNWRAP":            pkcs11.CKA_UNWRAP,
	"CKA_DERIVE":            pkcs11.CKA_DERIVE,
	"CKA_MODIFIABLE":        pkcs11.CKA_MODIFIABLE,
	"CKA_COPYABLE":          pkcs11.CKA_COPYABLE,
	"CKA_DESTROYABLE":       pkcs11.CKA_DESTROYABLE,
	"CKA_TRUSTED":           pkcs11.CKA_TRUSTED,
	"CKA_WRAP_WITH_TRUSTED": pkcs11.CKA_WRAP_WITH_TRUSTED,
}

// ownAttributes are those that byokd sets itself, without which a key would
// not be found again, or would not be safe.
var ownAttributes = []string{"CKA_SENSITIVE", "CKA_TOKEN", "CKA_PRIVATE", "CKA_VALUE", "CKA_VALUE_LEN", "CKA_LABEL", "CKA_ID"}

// keyTemplate returns the template of an AES-256 key on the token. Every
// attribute is set on purpose, the false ones too: left out, SoftHSM and
// openCryptoki turn WRAP, UNWRAP, SIGN and VERIFY on.
func keyTemplate(ref KeyRef, overrides map[string]any) ([]*pkcs11.Attribute, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, keyBytes),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),   // never in the clear outside the token
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true), // but wrapped, now and whenever KMS must get it again
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, false),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, false),
		pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, ref.Label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, ref.ID),
	}
	for _, attr := range slices.SortedFunc(maps.Keys(overrides), cmp.Compare) {
		value := overrides[attr]
		typ, err := attributeType(attr)
		if err != nil {
			return nil, err
		}
		if err := checkOverride(attr, value); err != nil {
			return nil, err
		}
		template = without(template, typ)
		if value != omit {
			template = append(template, pkcs11.NewAttribute(typ, value))
		}
	}
	return template, nil
}

// throwawayTemplate is the template of a session key for the self-test: like
// the real one, but for what makes it an object on the token.
func throwawayTemplate(overrides map[string]any) ([]*pkcs11.Attribute, error) {
	template, err := keyTemplate(KeyRef{}, overrides)
	if err != nil {
		return nil, err
	}
	for _, typ := range []uint{pkcs11.CKA_TOKEN, pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_ENCRYPT} {
		template = without(template, typ)
	}
	return append(template,
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), // the proof encrypts with it
	), nil
}

func without(template []*pkcs11.Attribute, typ uint) []*pkcs11.Attribute {
	return slices.DeleteFunc(template, func(a *pkcs11.Attribute) bool { return a.Type == typ })
}

// attributeType returns the number of an attribute from its name, or from
// hexadecimal digits after 0x.
func attributeType(attr string) (uint, error) {
	if typ, ok := attributeNames[attr]; ok {
		return typ, nil
	}
	if slices.Contains(ownAttributes, attr) {
		return 0, fmt.Errorf("%s cannot be changed: byokd sets it itself", attr)
	}
	if hex, ok := strings.CutPrefix(attr, "0x"); ok {
		typ, err := strconv.ParseUint(hex, 16, 32)
		if err == nil && typ >= pkcs11.CKA_VENDOR_DEFINED {
			return uint(typ), nil
		}
		return 0, fmt.Errorf("%s is no vendor's attribute: those are 0x80000000 to 0xFFFFFFFF", attr)
	}
	return 0, fmt.Errorf("%s is no attribute that byokd knows for an AES key; a vendor's own is written 0x and its number, 80000000 or more", attr)
}

// checkOverride checks the value given for an attribute that may be named.
func checkOverride(attr string, value any) error {
	if value == omit {
		return nil
	}
	_, isBool := value.(bool)
	switch {
	case attr == "CKA_CLASS" || attr == "CKA_KEY_TYPE":
		return fmt.Errorf(`%s can only be left out, with "omit"`, attr)
	case attr == "CKA_EXTRACTABLE" && value != true:
		return fmt.Errorf(`%s must be true or "omit": KMS must get the key`, attr)
	case strings.HasPrefix(attr, "CKA_") && !isBool:
		return fmt.Errorf(`%s must be true, false or "omit"`, attr)
	}
	switch value.(type) {
	case bool, int64, string:
		return nil
	}
	return fmt.Errorf(`%s must be true, false, a whole number, a string or "omit"`, attr)
}
