package options

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// write makes a configuration directory; names are relative to it, "config.yaml" is the main file.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	directory := t.TempDir()
	for name, content := range files {
		file := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(directory, "config.yaml")
}

func noEnv(string) string { return "" }

func parse(t *testing.T, role Role, files map[string]string, arguments ...string) (*Values, []string, error) {
	t.Helper()
	return Parse(role, append([]string{"--config", write(t, files)}, arguments...), noEnv)
}

func TestLaterFilesReplaceAndPlusAppends(t *testing.T) {
	values, _, err := parse(t, Server, map[string]string{
		"config.yaml":              "tls-san: [a]\nnode-label: [x=1]\ncluster-domain: one\n",
		"config.yaml.d/10.yaml":    "tls-san: [b]\nnode-label+: [y=2]\n",
		"config.yaml.d/20.yml":     "node-label+: z=3\ncluster-domain: two\n",
		"config.yaml.d/30.txt":     "cluster-domain: ignored\n",
		"config.yaml.d/sub/a.yaml": "cluster-domain: ignored\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := values.List("tls-san"); !slices.Equal(got, []string{"b"}) {
		t.Error("without + a list is replaced:", got)
	}
	if got := values.List("node-label"); !slices.Equal(got, []string{"x=1", "y=2", "z=3"}) {
		t.Error("with + it grows:", got)
	}
	if got := values.String("cluster-domain"); got != "two" {
		t.Error(got)
	}
}

func TestCommandLineReplacesFile(t *testing.T) {
	values, _, err := parse(t, Server, map[string]string{"config.yaml": "tls-san: [a, b]\nhttps-listen-port: 7000\ncluster-init: true\n"},
		"--tls-san", "c", "--tls-san=d", "--https-listen-port=8000", "--cluster-init=false")
	if err != nil {
		t.Fatal(err)
	}
	if got := values.List("tls-san"); !slices.Equal(got, []string{"c", "d"}) {
		t.Error("the list of the command line replaces the file's:", got)
	}
	if values.Int("https-listen-port") != 8000 || values.Bool("cluster-init") {
		t.Error(values.values)
	}
}

func TestFlagsBeatEnvironment(t *testing.T) {
	environment := func(name string) string {
		return map[string]string{"K3S_TOKEN": "env", "K3S_NODE_NAME": "env"}[name]
	}
	values, _, err := Parse(Agent, []string{"--config", write(t, map[string]string{"config.yaml": "node-name: file"})}, environment)
	if err != nil {
		t.Fatal(err)
	}
	if values.String("token") != "env" || values.String("node-name") != "file" {
		t.Error(values.values)
	}
}

func TestUnknownKeys(t *testing.T) {
	files := map[string]string{"config.yaml": "no-such-key: 1\nnode-name: node-a\n"}
	values, warnings, err := parse(t, Server, files)
	if err != nil || values.String("node-name") != "node-a" || !slices.Equal(warnings, []string{"Unknown flag --no-such-key found in config.yaml, skipping"}) {
		t.Error("a server warns and goes on:", warnings, err)
	}
	_, _, err = parse(t, Agent, files)
	var usage UsageError
	if !errors.As(err, &usage) || err.Error() != "flag provided but not defined: -no-such-key" {
		t.Error("an agent dies with its usage:", err)
	}
	if _, _, err = parse(t, Agent, map[string]string{"config.yaml": "disable: [traefik]"}); !errors.As(err, &usage) {
		t.Error("the servers' file is not for agents:", err)
	}
	for _, role := range []Role{Server, Agent} {
		if _, _, err := parse(t, role, map[string]string{"config.yaml": ""}, "--no-such-flag"); !errors.As(err, &usage) {
			t.Error("an unknown flag ends both:", role, err)
		}
	}
}

func TestBadValues(t *testing.T) {
	for _, content := range []string{"https-listen-port: many", "cluster-init: perhaps", "etcd-s3-timeout: soon"} {
		var usage UsageError
		if _, _, err := parse(t, Server, map[string]string{"config.yaml": content}); !errors.As(err, &usage) {
			t.Error(content, err)
		}
	}
}

func TestBrokenFile(t *testing.T) {
	_, _, err := parse(t, Server, map[string]string{"config.yaml": "a: [b\n"})
	if err == nil || !strings.Contains(err.Error(), "config.yaml") {
		t.Error("broken YAML names the file:", err)
	}
	if _, _, err := Parse(Server, []string{"--config=/no/such/file"}, noEnv); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file that was named must exist:", err)
	}
	if _, _, err := Parse(Server, nil, noEnv); err != nil {
		t.Error("the default file may be missing:", err)
	}
}

func TestUnquotedOctalIsANumber(t *testing.T) {
	values, _, err := parse(t, Server, map[string]string{"config.yaml": "write-kubeconfig-mode: 0644\n"})
	if err != nil || values.String("write-kubeconfig-mode") != "420" {
		t.Error(values.String("write-kubeconfig-mode"), err)
	}
	values, _, err = parse(t, Server, map[string]string{"config.yaml": "write-kubeconfig-mode: \"0644\"\n"})
	if err != nil || values.String("write-kubeconfig-mode") != "0644" {
		t.Error(values.String("write-kubeconfig-mode"), err)
	}
}

func TestWhatIsMissingIsRefused(t *testing.T) {
	for _, content := range []string{"datastore-endpoint: x", "embedded-registry: true", "etcd-s3: true", "node-external-ip: [1.2.3.4]"} {
		name, _, _ := strings.Cut(content, ":")
		if _, _, err := parse(t, Server, map[string]string{"config.yaml": content}); err == nil || !strings.Contains(err.Error(), name) {
			t.Error("must be refused by name:", content, err)
		}
	}
	for _, content := range []string{"embedded-registry: false", "etcd-s3-retention: 5", "disable-helm-controller: true"} {
		if _, _, err := parse(t, Server, map[string]string{"config.yaml": content}); err != nil {
			t.Error("changes nothing, so it is accepted:", content, err)
		}
	}
}

func TestArgumentsHideSecrets(t *testing.T) {
	values, _, err := parse(t, Server, map[string]string{"config.yaml": "token: hunter2\nagent-token: hunter2\nnode-name: node-a\n"})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(values.Arguments(), " ")
	if strings.Contains(text, "hunter2") || !strings.Contains(text, "--node-name node-a") || !strings.Contains(text, "--token ********") {
		t.Error(text)
	}
}

// Every option of the table must be one that the code can ask for without panic, and names must be unique.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, option := range slices.Concat(common, serverOnly, agentOnly) {
		if seen[option.name] {
			t.Error("twice:", option.name)
		}
		seen[option.name] = true
	}
}
