// Package datastore is the client's side of the embedded etcd: its members, its snapshots, and its files while it is stopped.
package datastore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// A learner that does not come closer for this long is removed again.
	stallLimit    = 5 * time.Minute
	statusTimeout = 2 * time.Second
)

var (
	// ErrLearner tells that this member may not vote yet.
	ErrLearner = errors.New("this server has not yet been promoted from learner to voting member")
	// ErrDuplicate tells that another member has the name of this node.
	ErrDuplicate = errors.New("duplicate node name found, please use a unique name for this node")
)

// Self is what this server's member is called and where it answers.
type Self struct {
	Name    string // <node>-<8 hex>
	Node    string
	PeerURL string
}

// Info is the answer of the supervisor's path for servers that join.
type Info struct {
	Members []*etcdserverpb.Member `json:"members"`
}

// VoterURLs are the client URLs of the members that vote: only they take requests.
func (i Info) VoterURLs() []string {
	var urls []string
	for _, member := range i.Members {
		if !member.IsLearner {
			urls = append(urls, member.ClientURLs...)
		}
	}
	return urls
}

// Join adds this server as a learner, unless it was added before it could start, and returns the cluster in the form
// that etcd wants. Errors: ErrDuplicate; "too many learner members" while another server joins and "unhealthy cluster"
// in the seconds after one has joined, which pass; no quorum.
func Join(ctx context.Context, client *clientv3.Client, self Self) (initialCluster string, err error) {
	found, err := client.MemberList(ctx)
	if err != nil {
		return "", err
	}
	var cluster []string
	known := false
	for _, member := range found.Members {
		if nodeOf(member.Name) == self.Node && member.Name != self.Name {
			return "", ErrDuplicate
		}
		for _, peer := range member.PeerURLs {
			// A member that was added and never started has no name yet.
			if peer == self.PeerURL && (member.Name == "" || member.Name == self.Name) {
				known = true
				member.Name = self.Name
			}
		}
		if len(member.PeerURLs) > 0 {
			cluster = append(cluster, member.Name+"="+member.PeerURLs[0])
		}
	}
	if !known {
		mine := self.Name + "=" + self.PeerURL
		logrus.Infof("Adding member %s to etcd cluster %v", mine, cluster)
		if _, err := client.MemberAddAsLearner(ctx, []string{self.PeerURL}); err != nil {
			return "", err
		}
		cluster = append(cluster, mine)
	}
	slices.Sort(cluster)
	logrus.Infof("Starting etcd to join cluster with members %v", cluster)
	return strings.Join(cluster, ","), nil
}

// nodeOf is the node in a member's name.
func nodeOf(member string) string {
	if at := strings.LastIndex(member, "-"); at > 0 {
		return member[:at]
	}
	return member
}

// Check tells whether this server's member votes. Errors: ErrLearner, no quorum, a member that the cluster does not know.
func Check(ctx context.Context, client *clientv3.Client, self Self) error {
	limited, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := client.Status(limited, client.Endpoints()[0])
	if err != nil {
		return err
	}
	if status.IsLearner {
		return ErrLearner
	}
	found, err := client.MemberList(limited)
	if err != nil {
		return err
	}
	var seen []string
	for _, member := range found.Members {
		for _, peer := range member.PeerURLs {
			if member.Name == self.Name && peer == self.PeerURL {
				return nil
			}
			seen = append(seen, member.Name+"="+peer)
		}
	}
	return fmt.Errorf("this server is a not a member of the etcd cluster. Found %v, expect: %s=%s", seen, self.Name, self.PeerURL)
}

// Remove removes the member of a name and an address; one that is not there is no error.
// Errors: no quorum, and a removal that would cost the cluster its quorum.
func Remove(ctx context.Context, client *clientv3.Client, name, address string) error {
	found, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, member := range found.Members {
		if member.Name != name {
			continue
		}
		for _, peer := range member.PeerURLs {
			parsed, err := url.Parse(peer)
			if err != nil {
				return err
			}
			if parsed.Hostname() != address {
				continue
			}
			logrus.Infof("Removing name=%s id=%d address=%s from etcd", member.Name, member.ID, address)
			if _, err := client.MemberRemove(ctx, member.ID); !errors.Is(err, rpctypes.ErrMemberNotFound) {
				return err
			}
			return nil
		}
	}
	return nil
}

// State is what a member is for the cluster, as the condition EtcdIsVoter tells it.
type State struct {
	Voter           bool
	Reason, Message string
}

// States of members.
var (
	Voter     = State{true, "MemberNotLearner", "Node is a voting member of the etcd cluster"}
	Learner   = State{false, "MemberIsLearner", "Node has not been promoted to voting member of the etcd cluster"}
	Unhealthy = State{false, "Unhealthy", "Node is unhealthy"}
	NotMember = State{false, "NotAMember", "Node is not a member of the etcd cluster"}
)

// Keeper looks after the members of the cluster; only the one beside etcd's leader does so.
type Keeper struct {
	Client *clientv3.Client
	// BeforePromotion is called before a learner becomes a voter, which is when another server begins to work.
	BeforePromotion func() error

	learner  uint64
	applied  uint64
	progress time.Time
}

// Step promotes a learner that has caught up, removes one that stalls, and tells how all members are, by name.
// On servers that do not lead it returns nothing. Errors: etcd does not answer.
func (k *Keeper) Step(ctx context.Context, now time.Time) (map[string]State, error) {
	mine, err := k.status(ctx, k.Client.Endpoints()[0])
	if err != nil {
		return nil, err
	}
	if mine.Header.MemberId != mine.Leader {
		return nil, nil
	}
	limited, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	found, err := k.Client.MemberList(limited)
	if err != nil {
		return nil, err
	}
	states := map[string]State{}
	for _, member := range found.Members {
		state := Learner
		if member.IsLearner {
			promoted, err := k.track(ctx, member, now)
			if err != nil {
				logrus.Errorf("Failed to track learner progress towards promotion: %v", err)
			}
			if promoted {
				state = Voter
			}
		} else if state = Voter; k.reach(ctx, member) == nil {
			state = Unhealthy
		}
		states[member.Name] = state
	}
	return states, nil
}

// track promotes a learner, or sees whether it comes closer.
func (k *Keeper) track(ctx context.Context, member *etcdserverpb.Member, now time.Time) (promoted bool, err error) {
	if k.BeforePromotion != nil {
		if err := k.BeforePromotion(); err != nil {
			return false, err
		}
	}
	limited, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if _, err := k.Client.MemberPromote(limited, member.ID); err == nil {
		logrus.Infof("Promoted learner %s", member.Name)
		return true, nil
	}
	if k.learner != member.ID {
		k.learner, k.applied, k.progress = member.ID, 0, now
	}
	if status := k.reach(ctx, member); status != nil && status.RaftAppliedIndex > k.applied {
		k.applied, k.progress = status.RaftAppliedIndex, now
	}
	stalled := now.Sub(k.progress)
	if stalled > 0 {
		logrus.Warnf("Learner %s stalled at RaftAppliedIndex=%d for %s", member.Name, k.applied, stalled)
	}
	if stalled > stallLimit {
		if _, err := k.Client.MemberRemove(ctx, member.ID); err != nil {
			return false, err
		}
		logrus.Warnf("Removed learner %s from etcd cluster", member.Name)
	}
	return false, nil
}

// reach asks a member at the first of its addresses that answers; nil when none does.
func (k *Keeper) reach(ctx context.Context, member *etcdserverpb.Member) *clientv3.StatusResponse {
	for _, address := range member.ClientURLs {
		if status, err := k.status(ctx, address); err == nil {
			return status
		}
	}
	return nil
}

func (k *Keeper) status(ctx context.Context, address string) (*clientv3.StatusResponse, error) {
	limited, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return k.Client.Status(limited, address)
}
