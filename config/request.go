package config

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"

	"github.com/pelletier/go-toml/v2"
)

// A Request is the body of a request file sync.NAME: what to synchronize.
type Request struct {
	Generation     *int   // the generation to synchronize; nil: not named so
	KeyID          string // the KMS key to synchronize; "": not named so
	ImportMaterial bool   // import the material again; default true
	UpdatePolicy   bool   // put the key policy; default true
	DeleteMaterial bool   // delete the imported material; default false
}

const requestKeys = "generation, key_id, import_material, update_policy and delete_material"

// ParseRequest reads the TOML body of a request file. An empty body is a
// request with the defaults. A body that deletes material does not import it,
// and has to name the generation or the key.
//
// Errors say where the mistake is and never quote the body, which may be
// anything at all.
func ParseRequest(body []byte) (Request, error) {
	var file struct {
		Generation     *int64  `toml:"generation"`
		KeyID          *string `toml:"key_id"`
		ImportMaterial *bool   `toml:"import_material"`
		UpdatePolicy   *bool   `toml:"update_policy"`
		DeleteMaterial *bool   `toml:"delete_material"`
	}
	err := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields().Decode(&file)
	if err != nil {
		return Request{}, requestError(err)
	}

	r := Request{ImportMaterial: true, UpdatePolicy: true}
	if file.Generation != nil {
		if *file.Generation < 0 || *file.Generation > math.MaxInt32 {
			return Request{}, errors.New("generation: not a generation's number")
		}
		r.Generation = new(int(*file.Generation))
	}
	if file.KeyID != nil {
		r.KeyID = *file.KeyID
		// 2048 is the longest KeyId that KMS takes.
		if r.KeyID == "" || len(r.KeyID) > 2048 || strings.ContainsFunc(r.KeyID, func(c rune) bool { return c > unicode.MaxASCII || !unicode.IsGraphic(c) || c == ' ' }) {
			return Request{}, errors.New("key_id: not the ID or ARN of a KMS key")
		}
	}
	if r.Generation != nil && r.KeyID != "" {
		return Request{}, errors.New("generation and key_id: name the key by one of them")
	}
	if file.UpdatePolicy != nil {
		r.UpdatePolicy = *file.UpdatePolicy
	}
	if file.ImportMaterial != nil {
		r.ImportMaterial = *file.ImportMaterial
	}
	if file.DeleteMaterial != nil && *file.DeleteMaterial {
		if r.Generation == nil && r.KeyID == "" {
			return Request{}, errors.New("delete_material: name the generation, or the key by key_id")
		}
		if file.ImportMaterial != nil && *file.ImportMaterial {
			return Request{}, errors.New("delete_material and import_material: only one of them can be true")
		}
		r.DeleteMaterial, r.ImportMaterial = true, false
	}
	return r, nil
}

// requestError says what is wrong with a body in words of its own, since those
// of the decoder quote it.
func requestError(err error) error {
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(missing.Errors) > 0 {
		row, column := missing.Errors[0].Position()
		return fmt.Errorf("line %d, column %d: unknown key: there are %s", row, column, requestKeys)
	}
	wrong, ok := errors.AsType[*toml.DecodeError](err)
	if !ok {
		return errors.New("not TOML")
	}
	row, column := wrong.Position()
	switch key := strings.Join(wrong.Key(), "."); key {
	case "generation":
		return fmt.Errorf("line %d, column %d: generation: must be a whole number", row, column)
	case "key_id":
		return fmt.Errorf("line %d, column %d: key_id: must be a string", row, column)
	case "import_material", "update_policy", "delete_material":
		return fmt.Errorf("line %d, column %d: %s: must be true or false", row, column, key)
	}
	return fmt.Errorf("line %d, column %d: not TOML", row, column)
}
