package ssh

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
)

// Gangs that race for the same hosts may each get a part, and none the whole. They have an order that all of them know, by
// their names: the first keeps its part and waits for the others' parts; each other gives its part back at once and tries
// again a while later, when the first has all or has given up.
const (
	yieldsMost = 3
	yieldPause = 200 * time.Millisecond // the shortest while; up to four times that, and twice as long each time
	waitPause  = 150 * time.Millisecond // between two tries of the first
	waitMost   = 10 * time.Second
)

// placeOf is a cluster's place among the gangs.
func placeOf(installation, nameOnCloud string) string { return installation + "/" + nameOnCloud }

// rivalOf gives the first in rank of the gangs that are being made on a host; "" if there is none.
func rivalOf(i *sharedhost.Info) (first string) {
	if i == nil {
		return ""
	}
	for _, c := range i.Claims {
		if at := strings.LastIndexByte(c.Node, '-'); c.Contends && at > 0 {
			if r := placeOf(c.Installation, c.Node[:at]); first == "" || r < first {
				first = r
			}
		}
	}
	return first
}

// yielding is how long a cluster waits after it gave way so many times.
func yielding(token string, times int) time.Duration {
	h := fnv.New32a()
	fmt.Fprint(h, token, times)
	return (yieldPause + time.Duration(h.Sum32()%600)*time.Millisecond) << (times - 1)
}

// contend sees whether to try again where this create has a part of its hosts and other gangs have the rest.
func (b *bringUp) contend() bool {
	has := 0
	for _, rank := range b.ranks {
		if b.n.Ranks[rank] != nil {
			has++
		}
	}
	if len(b.contended) == 0 || len(b.fresh) == 0 || len(b.fresh) < has {
		return false
	}
	mine := placeOf(b.req.Cluster.Installation, b.req.Cluster.NameOnCloud())
	for _, rival := range b.contended {
		if rival < mine {
			return b.giveWay()
		}
	}
	if b.waits.IsZero() {
		b.waits = time.Now()
	}
	if time.Since(b.waits) > waitMost || !b.pause(waitPause) {
		return false
	}
	for h := range b.contended {
		delete(b.failed, h.link)
	}
	b.contended = nil
	return true
}

func (b *bringUp) pause(d time.Duration) bool {
	select {
	case <-b.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// giveWay gives back what this create has, and begins anew a while later.
func (b *bringUp) giveWay() bool {
	if b.yields == yieldsMost || b.release() != nil {
		return false
	}
	b.yields++
	b.expectNothing()
	if !b.pause(yielding(b.req.Token, b.yields)) {
		return false
	}
	n, err := b.p.existing(b.ctx, b.req, b.ranks, b.beside)
	if err != nil {
		return false
	}
	b.n, b.failed, b.why, b.fresh, b.unfit, b.down, b.contended = n, map[*link]bool{}, reasons{}, nil, 0, 0, nil
	b.p.begins(b.req.Cluster)
	return true
}
