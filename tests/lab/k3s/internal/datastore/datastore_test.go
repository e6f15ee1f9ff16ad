package datastore

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"slipway/tests/lab/k3s/internal/etcd"
	"slipway/tests/lab/k3s/internal/etcd/etcdtest"
)

const patience = 60 * time.Second // the machine may be busy

func self(member *etcdtest.Member) Self {
	return Self{Name: member.Name, Node: nodeOf(member.Name), PeerURL: member.PeerURL}
}

// eventually tries until it works.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(what, ": ", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// join makes a member part of the cluster, as a server does.
func join(t *testing.T, keeper *Keeper, member *etcdtest.Member) {
	t.Helper()
	var cluster string
	// etcd takes no further member before it has been connected to all others for some seconds.
	eventually(t, "join of "+member.Name, func() (err error) {
		cluster, err = Join(t.Context(), keeper.Client, self(member))
		return err
	})
	member.Start(t, cluster)
	own := member.Client(t)
	if err := Check(t.Context(), own, self(member)); !errors.Is(err, ErrLearner) {
		t.Fatal("a server joins as a learner:", err)
	}
	eventually(t, "promotion of "+member.Name, func() error {
		if _, err := keeper.Step(t.Context(), time.Now()); err != nil {
			return err
		}
		return Check(t.Context(), own, self(member))
	})
}

func TestMembersJoinAsLearnersAndBecomeVoters(t *testing.T) {
	first, second, third := etcdtest.New(t, "node-a-00000001"), etcdtest.New(t, "node-b-00000002"), etcdtest.New(t, "node-c-00000003")
	first.Start(t, "")
	client := first.Client(t)
	if err := Check(t.Context(), client, self(first)); err != nil {
		t.Fatal(err)
	}
	called := 0
	keeper := &Keeper{Client: client, BeforePromotion: func() error { called++; return nil }}
	if states, err := keeper.Step(t.Context(), time.Now()); err != nil || states[first.Name] != Voter || called > 0 {
		t.Fatal(states, called, err)
	}

	// One learner at a time: the second server to come is refused until the first has its vote.
	cluster, err := Join(t.Context(), client, self(second))
	if err != nil || cluster != first.Name+"="+first.PeerURL+","+second.Name+"="+second.PeerURL {
		t.Fatal(cluster, err)
	}
	if _, err := Join(t.Context(), client, self(third)); !errors.Is(err, rpctypes.ErrTooManyLearners) || !strings.Contains(err.Error(), "too many learner members in cluster") {
		t.Fatal(err)
	}
	// A server that was added and then stopped before etcd ran is not added twice.
	if again, err := Join(t.Context(), client, self(second)); err != nil || again != cluster {
		t.Fatal(again, err)
	}
	join(t, keeper, second)
	if called == 0 {
		t.Error("BeforePromotion was not called")
	}
	join(t, keeper, third)
	if states, err := keeper.Step(t.Context(), time.Now()); err != nil || len(states) != 3 || states[third.Name] != Voter {
		t.Error(states, err)
	}
	if states, err := (&Keeper{Client: third.Client(t)}).Step(t.Context(), time.Now()); err != nil || states != nil {
		t.Error("only the leader's server looks after the members:", states, err)
	}

	// A machine with a node's name and another data directory.
	other := etcdtest.New(t, "node-b-99999999")
	if _, err := Join(t.Context(), client, self(other)); !errors.Is(err, ErrDuplicate) {
		t.Error(err)
	}

	// Two of three lost: no reads, no writes, no new members.
	second.Stop()
	eventually(t, "two members go on", func() error { return Check(t.Context(), client, self(first)) })
	if states, err := keeper.Step(t.Context(), time.Now()); err != nil || states[second.Name] != Unhealthy {
		t.Error(states, err)
	}
	third.Stop()
	limited, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := client.Get(limited, "x"); err == nil {
		t.Error("read without quorum")
	}
	if _, err := client.Put(limited, "x", ""); err == nil {
		t.Error("write without quorum")
	}
}

func TestMembersAreRemovedByNameAndAddress(t *testing.T) {
	first, second := etcdtest.New(t, "node-a-00000001"), etcdtest.New(t, "node-b-00000002")
	first.Start(t, "")
	client := first.Client(t)
	keeper := &Keeper{Client: client}
	join(t, keeper, second)
	count := func() int {
		found, err := client.MemberList(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(found.Members)
	}
	for name, address := range map[string]string{"node-c-00000003": "127.0.0.1", second.Name: "10.0.0.9"} {
		if err := Remove(t.Context(), client, name, address); err != nil || count() != 2 {
			t.Error(name, address, err)
		}
	}
	eventually(t, "removal", func() error { return Remove(t.Context(), client, second.Name, "127.0.0.1") })
	if count() != 1 {
		t.Error(count())
	}
	// A member that was removed while it runs stops by itself.
	select {
	case <-second.Etcd.Server.StopNotify():
	case <-time.After(patience):
		t.Error("the removed member runs on")
	}
	if err := Remove(t.Context(), client, first.Name, "127.0.0.1"); err == nil {
		t.Error("the last member must stay")
	}
}

func TestALearnerThatStallsIsRemoved(t *testing.T) {
	first, second := etcdtest.New(t, "node-a-00000001"), etcdtest.New(t, "node-b-00000002")
	first.Start(t, "")
	keeper := &Keeper{Client: first.Client(t)}
	if _, err := Join(t.Context(), keeper.Client, self(second)); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, after := range []time.Duration{0, stallLimit, stallLimit + time.Second} {
		if _, err := keeper.Step(t.Context(), now.Add(after)); err != nil {
			t.Fatal(err)
		}
		found, err := keeper.Client.MemberList(t.Context())
		if err != nil || (len(found.Members) == 2) != (after <= stallLimit) {
			t.Error(after, found, err)
		}
	}
}

func TestServersAreListedWhileTheyLive(t *testing.T) {
	member := etcdtest.New(t, "node-a-00000001")
	member.Start(t, "")
	client := member.Client(t)
	one, stop := context.WithCancel(t.Context())
	go Announce(one, client, "10.0.0.2:6443")
	go Announce(t.Context(), client, "10.0.0.1:6443")
	want := func(addresses ...string) func() error {
		return func() error {
			found, err := Addresses(t.Context(), client)
			if err == nil && !slices.Equal(found, addresses) {
				err = errors.New(strings.Join(found, " "))
			}
			return err
		}
	}
	eventually(t, "both", want("10.0.0.1:6443", "10.0.0.2:6443"))
	changed := WatchAddresses(t.Context(), client)
	stopped := time.Now()
	stop()
	<-changed
	eventually(t, "the one that lives", want("10.0.0.1:6443"))
	if passed := time.Since(stopped); passed > addressTTL*time.Second/2 {
		t.Error("a stop is told at once, not when the lease ends:", passed)
	}
}

func TestFilesOfAStoppedMember(t *testing.T) {
	member := etcdtest.New(t, "node-a-00000001")
	if values, err := ReadFile(File(member.Directory), "/a/"); err != nil || len(values) > 0 {
		t.Error("nothing there yet:", values, err)
	}
	member.Start(t, "")
	client := member.Client(t)
	for _, pair := range [][2]string{{"/a/1", "old"}, {"/a/1", "new"}, {"/a/2", "gone"}, {"/b/1", "/a/ elsewhere"}} {
		if _, err := client.Put(t.Context(), pair[0], pair[1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Delete(t.Context(), "/a/2"); err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	if err := Save(t.Context(), clientv3.Config{Endpoints: client.Endpoints()}, snapshot); err != nil {
		t.Fatal(err)
	}
	member.Stop()
	for _, file := range []string{File(member.Directory), snapshot} {
		values, err := ReadFile(file, "/a/")
		if err != nil || len(values) != 1 || string(values["/a/1"]) != "new" {
			t.Error(file, values, err)
		}
	}
}

func TestSnapshotsBecomeClustersOfOne(t *testing.T) {
	first, second := etcdtest.New(t, "node-a-00000001"), etcdtest.New(t, "node-b-00000002")
	first.Start(t, "")
	keeper := &Keeper{Client: first.Client(t)}
	join(t, keeper, second)
	if _, err := keeper.Client.Put(t.Context(), "kept", "yes"); err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	if err := Save(t.Context(), clientv3.Config{Endpoints: keeper.Client.Endpoints()}, snapshot); err != nil {
		t.Fatal(err)
	}
	if _, err := keeper.Client.Put(t.Context(), "later", "no"); err != nil {
		t.Fatal(err)
	}
	restored := etcdtest.New(t, "node-a-00000009")
	if err := etcd.Restore(snapshot, restored.Directory, restored.Name, restored.PeerURL); err != nil {
		t.Fatal(err)
	}
	restored.Start(t, "")
	client := restored.Client(t)
	if err := Check(t.Context(), client, self(restored)); err != nil {
		t.Error(err)
	}
	found, err := client.MemberList(t.Context())
	if err != nil || len(found.Members) != 1 {
		t.Error(found, err)
	}
	kept, err := client.Get(t.Context(), "kept")
	if err != nil || len(kept.Kvs) != 1 {
		t.Error(kept, err)
	}
	if later, err := client.Get(t.Context(), "later"); err != nil || len(later.Kvs) != 0 {
		t.Error(later, err)
	}
	if err := etcd.Restore(snapshot, restored.Directory, restored.Name, restored.PeerURL); err == nil {
		t.Error("a directory with data is not overwritten")
	}
}
