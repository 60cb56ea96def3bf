package config_test

import (
	"strings"
	"testing"

	"byokd/config"

	"github.com/google/go-cmp/cmp"
)

func TestParseRequest(t *testing.T) {
	const key = "1234abcd-12ab-34cd-56ef-1234567890ab"
	tests := []struct {
		name, body string
		want       config.Request
	}{
		{"empty", "", config.Request{ImportMaterial: true, UpdatePolicy: true}},
		{"comment", "# all of it\n", config.Request{ImportMaterial: true, UpdatePolicy: true}},
		{"generation", "generation = 3", config.Request{Generation: new(3), ImportMaterial: true, UpdatePolicy: true}},
		{"adopted", "generation = 0", config.Request{Generation: new(0), ImportMaterial: true, UpdatePolicy: true}},
		{"key", "key_id = \"" + key + "\"\r\n", config.Request{KeyID: key, ImportMaterial: true, UpdatePolicy: true}},
		{"policy only", "import_material = false", config.Request{UpdatePolicy: true}},
		{"import only", "update_policy = false\nimport_material = true", config.Request{ImportMaterial: true}},
		{"delete", "generation = 2\ndelete_material = true", config.Request{Generation: new(2), UpdatePolicy: true, DeleteMaterial: true}},
		{"delete by key", "delete_material = true\nimport_material = false\nkey_id = '" + key + "'", config.Request{KeyID: key, UpdatePolicy: true, DeleteMaterial: true}},
		{"no delete", "delete_material = false", config.Request{ImportMaterial: true, UpdatePolicy: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.ParseRequest([]byte(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// secretWord stands in the bodies below, and in none of the errors.
const secretWord = "hunter2"

func TestParseRequestMistakes(t *testing.T) {
	tests := []struct {
		body, want string
	}{
		{"\n hunter2 = 1", "line 2, column 2: unknown key: there are generation, key_id, import_material, update_policy and delete_material"},
		{"[hunter2]\na = 1", "unknown key"},
		{"hunter2", "line 1, column 7: not TOML"},
		{"generation = 'hunter2'", "line 1, column 14: generation: must be a whole number"},
		{"generation = 1.5 # hunter2", "generation: must be a whole number"},
		{"generation = -1 # hunter2", "generation: not a generation's number"},
		{"generation = 99999999999 # hunter2", "generation: not a generation's number"},
		{"generation = 99999999999999999999 # hunter2", "line 1"},
		{"key_id = 5 # hunter2", "key_id: must be a string"},
		{"key_id = '' # hunter2", "key_id: not the ID"},
		{"key_id = 'hunter2 hunter2'", "key_id: not the ID"},
		{"key_id = \"hunter2\\n\"", "key_id: not the ID"},
		{"key_id = '" + strings.Repeat("hunter2", 300) + "'", "key_id: not the ID"},
		{"key_id = 'hunter2'\ngeneration = 1", "name the key by one of them"},
		{"update_policy = 'hunter2'", "update_policy: must be true or false"},
		{"import_material = 1 # hunter2", "import_material: must be true or false"},
		{"delete_material = true # hunter2", "delete_material: name the generation"},
		{"delete_material = true\nimport_material = true\ngeneration = 1 # hunter2", "only one of them"},
		{"generation = 1\ngeneration = 2 # hunter2", "line 2"},
		{"\x00hunter2", "not TOML"},
		{"key_id = '\xffhunter2'", "not TOML"},
	}
	for _, tt := range tests {
		t.Run(tt.body[:min(len(tt.body), 40)], func(t *testing.T) {
			r, err := config.ParseRequest([]byte(tt.body))
			if err == nil {
				t.Fatalf("accepted as %+v", r)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if strings.Contains(err.Error(), secretWord) {
				t.Errorf("error %q quotes the body", err)
			}
		})
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("generation = 3\nimport_material = false\n"))
	f.Add([]byte("delete_material = true\nkey_id = 'k'"))
	f.Add([]byte("[a.b]\nc = [1, {d = 2}]"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := config.ParseRequest(body)
		if err != nil {
			return
		}
		if r.DeleteMaterial && (r.ImportMaterial || r.Generation == nil && r.KeyID == "") {
			t.Errorf("%q is accepted as %+v", body, r)
		}
		if r.Generation != nil && (*r.Generation < 0 || r.KeyID != "") {
			t.Errorf("%q is accepted as %+v", body, r)
		}
	})
}
