package encryption

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// The form is the kube-apiserver's own, and what was written before must stay readable.
func TestForm(t *testing.T) {
	for content, want := range map[string]Config{
		`{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"aescbc":{"keys":[{"name":"aescbckey","secret":"eA=="}]}},{"identity":{}}]}]}`: {
			"aescbc", []Key{{"aescbckey", "eA=="}}, true,
		},
		`{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"identity":{}},{"secretbox":{"keys":[{"name":"a","secret":"eA=="},{"name":"b","secret":"eQ=="}]}}]}]}`: {
			"secretbox", []Key{{"a", "eA=="}, {"b", "eQ=="}}, false,
		},
	} {
		parsed, err := Parse([]byte(content))
		if err != nil || !reflect.DeepEqual(parsed, want) {
			t.Error(parsed, err)
		}
		if written, err := want.Marshal(); err != nil || string(written) != content {
			t.Error(string(written), err)
		}
	}
	for _, bad := range []string{"", "{}", `{"resources":[{"providers":[{"identity":{}}]}]}`} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Error(bad)
		}
	}
}

func TestStages(t *testing.T) {
	c, stage := New("aescbc"), Start
	first := c.Keys[0]
	step := func(action, want string) {
		t.Helper()
		var err error
		if c, stage, err = c.Apply(action, stage, false, now); err != nil || stage != want {
			t.Fatal(action, stage, err)
		}
	}
	step(ActionPrepare, Prepare)
	if len(c.Keys) != 2 || c.Keys[0] != first || c.Keys[1].Name != "aescbckey-2026-01-02T03:04:05Z" || c.Keys[1].Secret == first.Secret {
		t.Error(c.Keys)
	}
	fresh := c.Keys[1]
	step(ActionRotate, Rotate)
	if c.Keys[0] != fresh || c.Keys[1] != first {
		t.Error(c.Keys)
	}
	step(ActionReencrypt, ReencryptRequest)
	if got := c.Finished().Keys; len(got) != 1 || got[0] != fresh {
		t.Error(got)
	}
	stage = ReencryptFinished
	step(ActionRotateKeys, ReencryptRequest)
	if len(c.Keys) != 3 || c.Keys[1] != fresh || c.Keys[0] == fresh {
		t.Error(c.Keys)
	}
}

func TestActionsOutOfTurn(t *testing.T) {
	c := New("secretbox")
	for stage, actions := range map[string][]string{
		Start:            {ActionRotate, ActionReencrypt, "nonsense"},
		Prepare:          {ActionPrepare, ActionReencrypt, ActionRotateKeys},
		Rotate:           {ActionPrepare, ActionRotate, ActionRotateKeys},
		ReencryptRequest: {ActionPrepare, ActionRotateKeys},
		ReencryptActive:  {ActionPrepare, ActionRotateKeys},
	} {
		for _, action := range actions {
			if _, _, err := c.Apply(action, stage, false, now); err == nil || !strings.Contains(err.Error(), action) {
				t.Error(stage, action, err)
			}
		}
	}
	if _, stage, err := c.Apply(ActionReencrypt, Start, true, now); err != nil || stage != ReencryptRequest {
		t.Error("force:", stage, err)
	}
	off, _, err := c.Apply(ActionDisable, Start, false, now)
	if err != nil || off.Enabled || len(off.Keys) != 1 {
		t.Error(off, err)
	}
	if on, stage, err := off.Apply(ActionEnable, Rotate, false, now); err != nil || !on.Enabled || stage != Start {
		t.Error(on, stage, err)
	}
}

func TestStateTellsStageAndContent(t *testing.T) {
	if Stage("") != Start || Stage(State(ReencryptFinished, nil)) != ReencryptFinished {
		t.Error(State(ReencryptFinished, nil))
	}
	if State(Start, []byte("a")) == State(Start, []byte("b")) || State(Start, nil) == State(Rotate, nil) {
		t.Error("states that differ must look different")
	}
	if KeyType("aescbckey-x") != "AES-CBC" || KeyType("secretboxkey") != "XSalsa20-POLY1305" {
		t.Error("key types")
	}
}
