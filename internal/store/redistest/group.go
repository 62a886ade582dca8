package redistest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Password of the user admin of a Cluster, who may do everything.
const Password = "correct-horse"

// startWithin bounds how long a server takes to answer, and a group of servers to find itself.
const startWithin = 2 * time.Minute

// Cluster is a Redis Cluster with TLS and without a default user.
type Cluster struct {
	// Nodes are its six: three masters first, then a replica of each.
	Nodes []*Server
}

// StartCluster runs a Cluster of six, each with the given lines of redis.conf beside its own, and waits until every replica has
// what its master has: before that there is no failover.
func StartCluster(ctx context.Context, cert *Certificates, settings ...string) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	c := &Cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	settings = append([]string{"cluster-enabled yes", "cluster-node-timeout 2000", "tls-cluster yes", "tls-replication yes",
		"user default off", "user admin on >" + Password + " ~* &* +@all", "masteruser admin", "masterauth " + Password}, settings...)
	create := []string{"--cluster-replicas", "1", "--cluster-yes", "--cluster", "create"}
	for range 6 {
		s, err := start(ctx, &Server{program: "redis-server", secure: cert, login: []string{"--user", "admin", "--pass", Password, "--no-auth-warning"}}, settings)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, s)
		create = append(create, s.Address())
	}
	if _, err := c.Nodes[0].CLI(ctx, create...); err != nil {
		return nil, err
	}
	return c, until(ctx, func() error { return c.settled(ctx) })
}

// settled says what is missing until the Cluster could lose a master.
func (c *Cluster) settled(ctx context.Context) error {
	synced := 0
	for _, s := range c.Nodes {
		info, err := s.CLI(ctx, "CLUSTER", "INFO")
		if err != nil {
			return err
		}
		if !strings.Contains(info, "cluster_state:ok") {
			return errors.New("redistest: " + info)
		}
		if info, err = s.CLI(ctx, "INFO", "replication"); err != nil {
			return err
		}
		if strings.Contains(info, "master_link_status:up") {
			synced++
		}
	}
	if synced != len(c.Nodes)/2 {
		return fmt.Errorf("redistest: %d replicas follow their masters", synced)
	}
	return nil
}

// Addresses are those of all nodes.
func (c *Cluster) Addresses() []string { return addresses(c.Nodes) }

// Close ends all nodes.
func (c *Cluster) Close() error { return closeAll(c.Nodes) }

// Group is a master with a replica, and three Sentinels that watch them under the name "main".
type Group struct {
	Master, Replica *Server
	Sentinels       []*Server
}

// StartSentinel runs a Group whose Sentinels take a silent master for dead after one second. The given lines of redis.conf
// are for master and replica.
func StartSentinel(ctx context.Context, settings ...string) (_ *Group, err error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	g := &Group{}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	if g.Master, err = Start(ctx, settings...); err != nil {
		return nil, err
	}
	if g.Replica, err = Start(ctx, append([]string{fmt.Sprint("replicaof 127.0.0.1 ", g.Master.Port)}, settings...)...); err != nil {
		return nil, err
	}
	for range 3 {
		s, err := start(ctx, &Server{program: "redis-sentinel"}, []string{
			fmt.Sprintf("sentinel monitor main 127.0.0.1 %d 2", g.Master.Port), "sentinel down-after-milliseconds main 1000",
			"sentinel failover-timeout main 3000"})
		if err != nil {
			return nil, err
		}
		g.Sentinels = append(g.Sentinels, s)
	}
	return g, until(ctx, func() error {
		info, err := g.Replica.CLI(ctx, "INFO", "replication")
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = errors.New("redistest: the replica does not follow yet")
		}
		for _, s := range g.Sentinels {
			if err != nil {
				return err
			}
			if _, err = s.CLI(ctx, "SENTINEL", "CKQUORUM", "main"); err != nil {
				return err
			}
			var known string
			if known, err = s.CLI(ctx, "INFO", "sentinel"); err == nil && !strings.Contains(known, "slaves=1,sentinels=3") {
				err = errors.New("redistest: " + known)
			}
		}
		return err
	})
}

// Addresses are those of the Sentinels.
func (g *Group) Addresses() []string { return addresses(g.Sentinels) }

// Close ends all of them.
func (g *Group) Close() error {
	all := g.Sentinels
	for _, s := range []*Server{g.Replica, g.Master} {
		if s != nil {
			all = append(all, s)
		}
	}
	return closeAll(all)
}

func addresses(all []*Server) (out []string) {
	for _, s := range all {
		out = append(out, s.Address())
	}
	return out
}

func closeAll(all []*Server) (err error) {
	for _, s := range all {
		err = errors.Join(err, s.Close())
	}
	return err
}
