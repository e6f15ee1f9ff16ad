package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"slipway/tests/lab/k3s/internal/bootstrap"
	"slipway/tests/lab/k3s/internal/cluster"
	"slipway/tests/lab/k3s/internal/datastore"
	"slipway/tests/lab/k3s/internal/encryption"
	"slipway/tests/lab/k3s/internal/etcd"
	"slipway/tests/lab/k3s/internal/etcd/etcdtest"
	"slipway/tests/lab/k3s/internal/options"
	"slipway/tests/lab/k3s/internal/process"
	"slipway/tests/lab/k3s/internal/token"
)

// The servers of these tests run etcd as children, as real ones do: this test program is etcd under another name.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "etcd":
		os.Exit(etcd.Main())
	case RestoreProgram:
		os.Exit(etcd.RestoreMain())
	}
	os.Exit(m.Run())
}

// testHost is a machine on which a server runs or ran, without Kubernetes: its directory and ports stay.
type testHost struct {
	name, directory string
	port            int
	ports           etcdPorts
}

func newHost(t *testing.T, name string) *testHost {
	t.Helper()
	free := etcdtest.Ports(t, 4)
	return &testHost{name, t.TempDir(), free[0], etcdPorts{free[1], free[2], free[3]}}
}

func (m *testHost) url() string { return fmt.Sprintf("https://127.0.0.1:%d", m.port) }

func (m *testHost) config(t *testing.T, arguments ...string) *config {
	t.Helper()
	arguments = append(arguments, "--data-dir", m.directory, "--https-listen-port", fmt.Sprint(m.port), "--bind-address", "127.0.0.1")
	values, _, err := options.Parse(options.Server, arguments, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConfig(values, m.name, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	c.ports = m.ports
	return c
}

// server is a server that runs.
type server struct {
	*config
	group  *process.Group
	client *clientv3.Client
	stop   func()
	// leave ends the look after the members.
	leave func()
}

// start does what Run does before Kubernetes. A server that leads etcd looks after the members meanwhile.
func (m *testHost) start(t *testing.T, arguments ...string) (*server, error) {
	t.Helper()
	c := m.config(t, arguments...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	group := process.NewGroup()
	s := &server{config: c, group: group}
	s.stop = func() {
		cancel()
		group.Stop()
		if s.client != nil {
			s.client.Close()
		}
	}
	t.Cleanup(func() { s.stop() })
	err := func() error {
		if err := c.prepare(ctx); err != nil {
			return err
		}
		all, err := ensureAuthorities(c.data)
		if err != nil {
			return err
		}
		if err := c.ensureCertificates(all); err != nil {
			return err
		}
		passwords, err := c.ensurePasswords()
		if err != nil {
			return err
		}
		c.taker = c.newTaker(all.etcdServer)
		follower := &nodes{config: c, client: fake.NewClientset(), store: &store{}}
		if err := c.listen(ctx, group, all, passwords, follower, &atomic.Bool{}, nil); err != nil {
			return err
		}
		if err := c.writeTokens(all.server.PEM, passwords); err != nil {
			return err
		}
		if s.client, err = c.startDatastore(ctx, group, all, passwords[cluster.UserServer]); err != nil {
			return err
		}
		follower.store.client.Store(s.client)
		return nil
	}()
	if err != nil {
		s.stop()
		return nil, err
	}
	keeping, leave := context.WithCancel(ctx)
	left := make(chan struct{})
	s.leave = func() {
		leave()
		<-left
	}
	go func() {
		defer close(left)
		keeper := &datastore.Keeper{Client: s.client}
		for keeping.Err() == nil {
			keeper.Step(keeping, time.Now())
			time.Sleep(200 * time.Millisecond)
		}
	}()
	return s, nil
}

func (m *testHost) mustStart(t *testing.T, arguments ...string) *server {
	t.Helper()
	s, err := m.start(t, arguments...)
	if err != nil {
		t.Fatal(m.name, ": ", err)
	}
	return s
}

// members are the names of etcd's members.
func (s *server) members(t *testing.T) string {
	t.Helper()
	found, err := s.client.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, member := range found.Members {
		names = append(names, member.Name)
	}
	return strings.Join(names, " ")
}

// ask sends a request as an administrator of the server.
func (s *server) ask(t *testing.T, method, path string, request, result any) error {
	t.Helper()
	address := fmt.Sprintf("https://127.0.0.1:%d", s.port)
	client, err := cluster.Dial(t.Context(), address, token.Token{User: cluster.UserServer, Password: password(s.token)})
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.WithTimeout(time.Minute).Request(t.Context(), method, path, body, nil)
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(answer, result)
}

func TestServersShareAuthoritiesAndData(t *testing.T) {
	first, second, third := newHost(t, "node-a"), newHost(t, "node-b"), newHost(t, "node-c")
	a := first.mustStart(t, "--cluster-init", "--token", "secret")
	if a.elect.Load() {
		t.Error("a server that is alone needs no election")
	}
	if _, err := a.client.Put(t.Context(), "written", "by a"); err != nil {
		t.Fatal(err)
	}
	secure := strings.TrimSpace(read(t, a.data.Server("token")))
	joining := []string{"--server", first.url(), "--token", secure}
	b := second.mustStart(t, joining...)
	for _, name := range []string{"server-ca.crt", "client-ca.key", "service.key", "etcd/peer-ca.key"} {
		if read(t, b.data.TLS(name)) != read(t, a.data.TLS(name)) {
			t.Error("not shared:", name)
		}
	}
	if got := strings.TrimSpace(read(t, b.data.Server("token"))); got != secure {
		t.Error(got)
	}
	if found, err := b.client.Get(t.Context(), "written"); err != nil || len(found.Kvs) != 1 || !b.elect.Load() {
		t.Error(found, err)
	}
	third.mustStart(t, "--server", second.url(), "--token", "secret")
	if got := a.members(t); strings.Count(got, "node-") != 3 {
		t.Error(got)
	}

	// A member starts again without the server that it joined, and whatever its options say about joining.
	b.stop()
	a.stop()
	b = second.mustStart(t, append(joining, "--cluster-init")...)
	if got := b.members(t); strings.Count(got, "node-") != 3 {
		t.Error(got)
	}
	// Its own options are no longer compared.
	b.stop()
	second.mustStart(t, append(joining, "--cluster-domain", "changed.local")...)
}

func TestWhoMayNotJoin(t *testing.T) {
	first := newHost(t, "node-a")
	first.mustStart(t, "--cluster-init", "--token", "secret", "--agent-token", "agents")
	for want, arguments := range map[string][]string{
		"K3S_TOKEN is required to join a cluster":                                                 nil,
		"401 Unauthorized":                                                                        {"--token", "agents"},
		"token CA hash does not match the Cluster CA certificate hash":                            {"--token", "K10" + strings.Repeat("0", 64) + "::server:secret"},
		"critical configuration value mismatch between servers: cluster-cidr, secrets-encryption": {"--token", "secret", "--cluster-cidr", "10.52.0.0/16", "--secrets-encryption"},
	} {
		other := newHost(t, "node-b")
		_, err := other.start(t, append(arguments, "--server", first.url())...)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "starting kubernetes: preparing server: ") {
			t.Error(want, err)
		}
	}
	if _, err := newHost(t, "node-b").start(t, "--server", "https://127.0.0.1:1", "--token", "x"); err == nil || !strings.Contains(err.Error(), "failed to get CA certs") {
		t.Error(err)
	}
	// A second machine under the name of a server.
	if _, err := newHost(t, "node-a").start(t, "--server", first.url(), "--token", "secret"); !errors.Is(err, datastore.ErrDuplicate) {
		t.Error(err)
	}
	// Leftovers of another cluster.
	other := newHost(t, "node-b")
	leftover := other.mustStart(t, "--cluster-init", "--token", "secret")
	leftover.stop()
	if err := os.RemoveAll(leftover.data.Server("db")); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(leftover.data.TLS("server-ca.crt"), later, later); err != nil {
		t.Fatal(err)
	}
	if _, err := other.start(t, "--server", first.url(), "--token", "secret"); err == nil || !strings.Contains(err.Error(), "server-ca.crt newer than datastore") {
		t.Error(err)
	}
}

func TestARemovedServerJoinsAgainWithNewData(t *testing.T) {
	first, second := newHost(t, "node-a"), newHost(t, "node-b")
	a := first.mustStart(t, "--cluster-init", "--token", "secret")
	joining := []string{"--server", first.url(), "--token", "secret"}
	b := second.mustStart(t, joining...)
	before, err := b.memberName()
	if err != nil {
		t.Fatal(err)
	}
	// A member that is asked for its status just as it is removed panics (etcd, RaftCluster.IsLocalMemberLearner).
	b.leave()
	err = process.Poll(t.Context(), 200*time.Millisecond, func(ctx context.Context) error {
		return datastore.Remove(ctx, a.client, before, "127.0.0.1")
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-b.group.Failed():
		if !strings.Contains(err.Error(), "etcd exited") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the removed server runs on")
	}
	b.stop()
	if _, err := os.Stat(b.data.Server("db", "etcd", "tombstone")); err != nil {
		t.Fatal(err)
	}
	b = second.mustStart(t, joining...)
	after, err := b.memberName()
	if err != nil || after == before || !strings.Contains(a.members(t), after) {
		t.Error(before, after, a.members(t), err)
	}
	if old, err := filepath.Glob(b.data.Server("db", "etcd-old-*")); err != nil || len(old) != 1 {
		t.Error(old, err)
	}
}

func TestSnapshotsAndResets(t *testing.T) {
	first, second := newHost(t, "node-a"), newHost(t, "node-b")
	a := first.mustStart(t, "--cluster-init", "--token", "secret")
	b := second.mustStart(t, "--server", first.url(), "--token", "secret")
	put := func(key string) {
		t.Helper()
		if _, err := a.client.Put(t.Context(), key, ""); err != nil {
			t.Fatal(err)
		}
	}
	put("kept")
	var saved cluster.SnapshotResult
	request := cluster.SnapshotRequest{Operation: cluster.SnapshotSave, Name: "on-demand", Compress: true}
	if err := a.ask(t, http.MethodPost, cluster.PathDBSnapshot, request, &saved); err != nil || len(saved.Created) != 1 {
		t.Fatal(saved, err)
	}
	snapshot := a.data.Server("db", "snapshots", saved.Created[0])
	put("later")
	a.stop()
	b.stop()
	before, err := a.memberName()
	if err != nil {
		t.Fatal(err)
	}
	reset := func(want string, arguments ...string) {
		t.Helper()
		group := process.NewGroup()
		defer group.Stop()
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := first.config(t, append(arguments, "--cluster-reset")...).reset(limited, group)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Fatal(want, err)
		}
	}
	reset("etcd: snapshot path does not exist: /no/such", "--cluster-reset-restore-path", "/no/such")
	reset(bootstrap.ErrOtherToken.Error(), "--cluster-reset-restore-path", snapshot, "--token", "other")
	if now, err := a.memberName(); err != nil || now != before {
		t.Error("a refused reset changes nothing:", now, err)
	}

	// One server of two: no quorum. It becomes a cluster of its own, with all its data.
	reset("")
	reset("Managed etcd cluster membership was previously reset, please remove the cluster-reset flag")
	a = first.mustStart(t, "--cluster-init")
	if got, err := a.memberName(); err != nil || got == before || a.members(t) != got {
		t.Error(before, a.members(t), err)
	}
	has := func(key string) bool {
		t.Helper()
		found, err := a.client.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return len(found.Kvs) > 0
	}
	if !has("kept") || !has("later") {
		t.Error("a reset without a snapshot loses nothing")
	}
	follower := &nodes{config: a.config, client: fake.NewClientset(), store: &store{}}
	if err := follower.finishReset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.resetFlag()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	a.stop()

	// From the snapshot, on the same machine and then on a new one that knows the token only.
	reset("", "--cluster-reset-restore-path", snapshot)
	a = first.mustStart(t, "--cluster-init")
	if !has("kept") || has("later") {
		t.Error("not the snapshot's data")
	}
	ca := read(t, a.data.TLS("server-ca.crt"))
	a.stop()
	first = newHost(t, "node-new")
	reset("does not exist, please pass --token to complete the restoration", "--cluster-reset-restore-path", snapshot)
	reset("", "--cluster-reset-restore-path", snapshot, "--token", "secret")
	a = first.mustStart(t, "--token", "secret")
	if !has("kept") || has("later") || read(t, a.data.TLS("server-ca.crt")) != ca {
		t.Error("not the snapshot's cluster")
	}
}

func TestTokenRotation(t *testing.T) {
	first, second := newHost(t, "node-a"), newHost(t, "node-b")
	a := first.mustStart(t, "--cluster-init", "--token", "old")
	b := second.mustStart(t, "--server", first.url(), "--token", "old")
	rotate := func(fresh string) error {
		return a.ask(t, http.MethodPut, cluster.PathToken, cluster.TokenRequest{NewToken: fresh}, nil)
	}
	for _, bad := range []string{"", "abcdef.0123456789abcdef", "K10" + strings.Repeat("0", 64) + "::server:new"} {
		if err := rotate(bad); err == nil {
			t.Error("accepted:", bad)
		}
	}
	if err := rotate("new"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, a.data.Server("token")); !strings.HasSuffix(got, "::server:new\n") {
		t.Error(got)
	}
	// Servers that were not restarted go on with the old one.
	if err := b.ask(t, http.MethodGet, cluster.PathDBInfo, nil, nil); err != nil {
		t.Error(err)
	}
	b.stop()
	if _, err := second.start(t, "--token", "old"); !errors.Is(err, bootstrap.ErrOtherToken) || !strings.HasPrefix(err.Error(), "starting kubernetes: preparing server: failed to save bootstrap data: ") {
		t.Fatal(err)
	}
	// The stale start has written its password; at its age of a moment nobody would notice.
	passwd, later := b.data.Server("cred", "passwd"), time.Now().Add(time.Minute)
	if err := os.Chtimes(passwd, later, later); err != nil {
		t.Fatal(err)
	}
	if _, err := second.start(t, "--token", "new"); err == nil || !strings.HasPrefix(err.Error(), passwd+" newer than datastore and could cause a cluster outage.") {
		t.Fatal(err)
	}
	for _, name := range []string{passwd, b.data.Server("token")} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	b = second.mustStart(t, "--token", "new")
	if got := read(t, passwd); !strings.Contains(got, "new,server,") || strings.Contains(got, "old") {
		t.Error(got)
	}
	if err := b.ask(t, http.MethodGet, cluster.PathDBInfo, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestMembersGoWithTheirNodes(t *testing.T) {
	first, second := etcdtest.New(t, "node-a-00000001"), etcdtest.New(t, "node-b-00000002")
	first.Start(t, "")
	client := first.Client(t)
	initial, err := datastore.Join(t.Context(), client, datastore.Self{Name: second.Name, Node: "node-b", PeerURL: second.PeerURL})
	if err != nil {
		t.Fatal(err)
	}
	second.Start(t, initial)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: "node-b", Labels: map[string]string{etcdRole: "true"},
		Annotations: map[string]string{memberName: second.Name, memberAddress: "127.0.0.1"},
	}}
	agent := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "agent"}}
	n := &nodes{config: &config{node: "node-a"}, client: fake.NewClientset(node, agent), store: &store{}}
	n.store.client.Store(client)
	current := func() *corev1.Node {
		t.Helper()
		found, err := n.client.CoreV1().Nodes().Get(t.Context(), "node-b", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	follow := func() {
		t.Helper()
		if err := n.followMembers(t.Context(), []*corev1.Node{current(), agent}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		t.Helper()
		found, err := client.MemberList(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(found.Members)
	}
	follow()
	if got := current().Finalizers; len(got) > 0 {
		t.Error("a server that is alone is not guarded:", got)
	}
	n.config.elect.Store(true)
	follow()
	if got := current().Finalizers; len(got) != 1 || got[0] != "wrangler.cattle.io/managed-etcd-controller" {
		t.Error(got)
	}
	if count() != 2 {
		t.Fatal(count())
	}
	// By annotation first: the member goes, the Node stays.
	asked := current()
	asked.Annotations[removeMember] = "true"
	if _, err := n.client.CoreV1().Nodes().Update(t.Context(), asked, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	follow()
	if got := current().Annotations; count() != 1 || got[removedMember] != second.Name || got[memberName] != "" {
		t.Error(count(), got)
	}
	follow() // nothing more to do
	// It joined again under another name.
	again := current()
	again.Annotations[memberName], again.Annotations[memberAddress] = "node-b-00000003", "127.0.0.1"
	if _, err := n.client.CoreV1().Nodes().Update(t.Context(), again, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	follow()
	if got := current().Annotations; got[removeMember] != "false" || got[removedMember] != "" || got[memberName] != "node-b-00000003" {
		t.Error(got)
	}
	// A deleted Node is let go once its member is gone.
	deleted := current()
	now := metav1.Now()
	deleted.DeletionTimestamp = &now
	if err := n.followMember(t.Context(), deleted); err != nil || len(deleted.Finalizers) > 0 {
		t.Error(deleted.Finalizers, err)
	}
}

func TestNodesTellWhetherTheyVote(t *testing.T) {
	server := func(name, member string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{etcdRole: "true"}, Annotations: map[string]string{memberName: member},
		}}
	}
	n := &nodes{client: fake.NewClientset(server("a", "a-1"), server("b", "b-1"), server("c", "c-1"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "agent"}})}
	condition := func(name string) string {
		t.Helper()
		node, err := n.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, each := range node.Status.Conditions {
			all = append(all, fmt.Sprintf("%s=%s:%s", each.Type, each.Status, each.Reason))
		}
		return strings.Join(all, " ")
	}
	check := func(want map[string]string) {
		t.Helper()
		for name, text := range want {
			if got := condition(name); got != text {
				t.Error(name, got)
			}
		}
	}
	if err := n.writeStates(t.Context(), map[string]datastore.State{"a-1": datastore.Voter, "b-1": datastore.Learner}); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{"a": "EtcdIsVoter=True:MemberNotLearner", "b": "EtcdIsVoter=False:MemberIsLearner", "c": "EtcdIsVoter=False:NotAMember", "agent": ""})
	if err := n.writeStates(t.Context(), map[string]datastore.State{"a-1": datastore.Unhealthy, "b-1": datastore.Voter, "c-1": datastore.Voter}); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{"a": "EtcdIsVoter=False:Unhealthy", "b": "EtcdIsVoter=True:MemberNotLearner", "c": "EtcdIsVoter=True:MemberNotLearner"})
}

func TestServiceLeadsToAllServers(t *testing.T) {
	member := etcdtest.New(t, "node-a-00000001")
	member.Start(t, "")
	client := member.Client(t)
	go datastore.Announce(t.Context(), client, "10.0.0.2:6443")
	go datastore.Announce(t.Context(), client, "10.0.0.3:7443")
	err := process.Poll(t.Context(), 100*time.Millisecond, func(ctx context.Context) error {
		if found, err := datastore.Addresses(ctx, client); err != nil || len(found) < 2 {
			return fmt.Errorf("not yet: %v %w", found, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &nodes{config: &config{advertise: "10.0.0.1", advertisePort: 6443}, client: fake.NewClientset(), store: &store{}}
	n.store.client.Store(client)
	if err := n.writeEndpoints(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := n.apiServers(t.Context()); err != nil || strings.Join(got, " ") != "10.0.0.1:6443 10.0.0.2:6443" {
		t.Error(got, err)
	}
}

func TestKeysOfSecretsAreRotated(t *testing.T) {
	host := newHost(t, "node-a")
	s := host.mustStart(t, "--cluster-init", "--token", "secret", "--secrets-encryption")
	file, err := s.ensureEncryption()
	if err != nil {
		t.Fatal(err)
	}
	server := func(name, hash string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{etcdRole: "true"}, Annotations: map[string]string{encryptionHash: hash},
		}}
	}
	state, err := s.encryptionState()
	if err != nil || encryption.Stage(state) != encryption.Start {
		t.Fatal(state, err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "n"}}
	client := fake.NewClientset(server("node-a", state), server("node-b", state), secret)
	reloaded := 0
	e := &encrypter{config: s.config, lifetime: t.Context(), nodes: &nodes{config: s.config, client: client, store: &store{}}, reload: func() error {
		reloaded++
		if !strings.Contains(read(t, file), "aescbckey-") {
			t.Error("reloaded before the new key was written")
		}
		return nil
	}}
	e.nodes.store.client.Store(s.client)
	status := func() cluster.EncryptionStatus {
		t.Helper()
		found, err := e.status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if got := status(); got.Stage != encryption.Start || !got.HashMatch || got.ActiveKey != "aescbckey" || !*got.Enable {
		t.Error(got)
	}
	if err := e.change(t.Context(), cluster.EncryptionRequest{Action: encryption.ActionRotateKeys}); err != nil {
		t.Fatal(err)
	}
	err = process.Poll(t.Context(), 50*time.Millisecond, func(context.Context) error {
		if got := status(); got.Stage != encryption.ReencryptFinished {
			return errors.New(got.Stage)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := status()
	if got.HashMatch || got.HashError != "hash does not match between node-a and node-b" || got.ActiveKey == "aescbckey" || len(got.InactiveKeys) > 0 || reloaded != 1 {
		t.Error(got, reloaded)
	}
	updated := false
	for _, action := range client.Actions() {
		updated = updated || action.GetVerb() == "update" && action.GetResource().Resource == "secrets"
	}
	if !updated {
		t.Error("no secret was written anew")
	}
	// Not before the other server has been restarted.
	again := cluster.EncryptionRequest{Action: encryption.ActionRotateKeys}
	if err := e.change(t.Context(), again); err == nil || err.Error() != got.HashError {
		t.Error(err)
	}
	// Another server gets the key with its next start.
	saved, err := s.client.Get(t.Context(), bootstrap.Key("secret"))
	if err != nil || len(saved.Kvs) != 1 {
		t.Fatal(saved, err)
	}
	data, err := bootstrap.Open("secret", saved.Kvs[0].Value)
	if err != nil || string(data["cred/encryption-config.json"].Content) != read(t, file) {
		t.Error(err)
	}
	// A start keeps the stage.
	if _, err := s.ensureEncryption(); err != nil || status().Stage != encryption.ReencryptFinished {
		t.Error(status(), err)
	}
}
