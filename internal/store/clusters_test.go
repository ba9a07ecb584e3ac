package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
)

func names(cs []api.Cluster) (out []string) {
	for _, c := range cs {
		out = append(out, c.Name+"/"+c.Hash)
	}
	return out
}

func TestClusterRows(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	at := clk.now()
	full := api.Cluster{Name: "dev", Hash: "h1", Seq: 3, Status: api.ClusterUp, UserHash: "u1", Workspace: "w", LaunchedAt: &at, StatusUpdatedAt: at,
		Labels: map[string]string{"a": "b"}, NodeIPs: []string{"10.0.0.1"}, LastTaskYAML: "run: \"echo\"\n", PricePerHour: 1.5}
	must(t, s.PutCluster(ctx, full))
	got, err := s.Cluster(ctx, "dev")
	must(t, err)
	if !reflect.DeepEqual(got, full) {
		t.Fatalf("got  %+v\nwant %+v", got, full)
	}
	if _, err := s.Cluster(ctx, "none"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}

	// Stale and equal versions are skipped.
	for _, seq := range []int64{2, 3} {
		must(t, s.PutCluster(ctx, api.Cluster{Name: "dev", Hash: "h1", Seq: seq, Status: api.ClusterInit}))
	}
	if got, _ = s.Cluster(ctx, "dev"); got.Status != api.ClusterUp {
		t.Fatal("a stale row won")
	}
	must(t, s.PutCluster(ctx, api.Cluster{Name: "dev", Hash: "h1", Seq: 4, Status: api.ClusterStopped, UserHash: "u1"}))
	must(t, s.PutCluster(ctx, api.Cluster{Name: "train", Hash: "h2", Seq: 1, Status: api.ClusterUp, UserHash: "u2", Workspace: "w", LastTaskYAML: "x"}))
	for _, c := range []struct {
		f    ClusterFilter
		want []string
	}{
		{ClusterFilter{}, []string{"dev/h1", "train/h2"}},
		{ClusterFilter{Names: []string{"dev", "none"}}, []string{"dev/h1"}},
		{ClusterFilter{Names: []string{"tr*", "none"}}, []string{"train/h2"}},
		{ClusterFilter{UserHash: "u1"}, []string{"dev/h1"}},
		{ClusterFilter{Workspace: "w"}, []string{"train/h2"}},
		{ClusterFilter{Status: []api.ClusterStatus{api.ClusterUp, api.ClusterInit}}, []string{"train/h2"}},
	} {
		for _, full := range []bool{false, true} {
			c.f.Full = full
			got, err := s.Clusters(ctx, c.f)
			must(t, err)
			if !reflect.DeepEqual(names(got), c.want) {
				t.Errorf("%+v: %v", c.f, names(got))
			}
			raw, err := s.ClusterRows(ctx, c.f)
			must(t, err)
			for i, r := range raw {
				var d api.Cluster
				must(t, json.Unmarshal(r, &d))
				if !reflect.DeepEqual(d, got[i]) || (d.LastTaskYAML != "") != (full && d.Name == "train") {
					t.Errorf("%+v: raw %s", c.f, r)
				}
			}
		}
	}
}

func TestIncarnations(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	put := func(hash string, seq int64) {
		t.Helper()
		must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: hash, Seq: seq, Status: api.ClusterUp}))
	}
	live := func(want string) {
		t.Helper()
		c, err := s.Cluster(ctx, "c")
		if want == "" {
			if !errors.Is(err, ErrNotFound) {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		must(t, err)
		if c.Hash != want {
			t.Fatalf("live is %s, want %s", c.Hash, want)
		}
	}
	put("a", 5)
	must(t, s.RemoveCluster(ctx, Removal{Name: "c", Hash: "a", Seq: 6}))
	live("")
	put("a", 99)
	live("")
	put("b", 1)
	live("b")
	must(t, s.RemoveCluster(ctx, Removal{Name: "c", Hash: "a", Seq: 100})) // late and repeated: b is not meant
	live("b")
	put("c", 1) // replaces b, whose removal was lost
	live("c")
	put("b", 50)
	live("c")
	must(t, s.RemoveCluster(ctx, Removal{Name: "c", Hash: "d", Seq: 1})) // a removal that overtakes its row
	put("d", 1)
	live("c")
	must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: "c", Seq: 9, Status: api.ClusterTerminated, Region: "r9"}))
	live("")
	h, err := s.History(ctx, ClusterFilter{}, 0)
	must(t, err)
	if len(h) != 4 {
		t.Fatalf("%v", names(h))
	}
	c, isLive, err := s.ClusterByHash(ctx, "c")
	if err != nil || isLive || c.Status != api.ClusterTerminated || c.Region != "r9" || c.Seq != 9 {
		t.Fatalf("%+v %v %v", c, isLive, err)
	}
	if h, _ := s.History(ctx, ClusterFilter{Names: []string{"c"}}, 2); len(h) != 2 {
		t.Fatalf("%v", names(h))
	}
	if _, _, err := s.ClusterByHash(ctx, "zz"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}

func TestClaims(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	claim := func(hash, want string) {
		t.Helper()
		if h, err := s.ClaimName(ctx, "c", hash, "r"); err != nil || h != want {
			t.Fatalf("%s: %q, %v", hash, h, err)
		}
	}
	claim("a", "a")
	claim("a", "a")
	claim("b", "a")
	must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: "b", Seq: 1})) // lost the name
	if _, err := s.Cluster(ctx, "c"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	must(t, s.ReleaseName(ctx, "c", "b"))
	claim("b", "a")
	must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: "a", Seq: 1}))
	must(t, s.ReleaseName(ctx, "c", "a"))
	claim("b", "a") // the row holds it still
	must(t, s.RemoveCluster(ctx, Removal{Name: "c", Hash: "a"}))
	claim("b", "b")
	if _, err := s.ClaimName(ctx, "c", "a", "r"); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
}

// TestClusterMonotone plays random writes, repeated and out of order, against a plain model.
func TestClusterMonotone(t *testing.T) {
	s, _ := open(t)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		name := fmt.Sprintf("c%d", run)
		ended := map[string]bool{}
		liveHash, liveSeq := "", int64(0)
		for range rapid.IntRange(1, 25).Draw(t, "n") {
			hash := fmt.Sprintf("%d-%d", run, rapid.IntRange(0, 3).Draw(t, "hash"))
			seq := rapid.Int64Range(1, 8).Draw(t, "seq")
			if rapid.IntRange(0, 4).Draw(t, "op") == 0 {
				if err := s.RemoveCluster(t.Context(), Removal{Name: name, Hash: hash, Seq: seq}); err != nil {
					t.Fatal(err)
				}
				ended[hash] = true
				if liveHash == hash {
					liveHash = ""
				}
			} else {
				if err := s.PutCluster(t.Context(), api.Cluster{Name: name, Hash: hash, Seq: seq, Status: api.ClusterUp}); err != nil {
					t.Fatal(err)
				}
				switch {
				case ended[hash]:
				case liveHash == hash:
					liveSeq = max(liveSeq, seq)
				default:
					if liveHash != "" {
						ended[liveHash] = true
					}
					liveHash, liveSeq = hash, seq
				}
			}
			c, err := s.Cluster(t.Context(), name)
			if liveHash == "" {
				if !errors.Is(err, ErrNotFound) {
					t.Fatalf("want none, got %+v, %v", c, err)
				}
			} else if err != nil || c.Hash != liveHash || c.Seq != liveSeq {
				t.Fatalf("want %s/%d, got %s/%d, %v", liveHash, liveSeq, c.Hash, c.Seq, err)
			}
		}
	})
}

func TestCostReport(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	start := func(hash string, n int, price float64) {
		t.Helper()
		must(t, s.UsageStart(ctx, UsageStart{Hash: hash, N: n, Name: "name-" + hash, User: "me", Nodes: 2, PricePerHour: price, Resources: map[string]any{"cpus": "4+"}, ResourcesStr: "2x x", At: clk.now()}))
	}
	must(t, s.PutCluster(ctx, api.Cluster{Name: "old", Hash: "old", Seq: 1, Status: api.ClusterUp}))
	start("old", 1, 1)
	clk.add(2 * time.Hour)
	must(t, s.UsageEnd(ctx, UsageEnd{Hash: "old", N: 1, At: clk.now()}))
	clk.add(time.Hour) // stopped: free
	must(t, s.UsageEnd(ctx, UsageEnd{Hash: "old", N: 1, At: clk.now()}))
	start("old", 2, 3)
	start("old", 2, 3)
	clk.add(time.Hour)
	must(t, s.RemoveCluster(ctx, Removal{Name: "old", Hash: "old"})) // ends the interval
	clk.add(time.Hour)
	start("old", 3, 100) // late: it counts for nothing
	clk.add(40 * 24 * time.Hour)
	must(t, s.PutCluster(ctx, api.Cluster{Name: "new", Hash: "new", Seq: 1, Status: api.ClusterUp}))
	start("new", 1, 4)
	clk.add(time.Hour)
	start("new", 2, 8) // resized: the end of the first was not told
	clk.add(time.Hour)
	start("gone", 1, 1)
	must(t, s.UsageEnd(ctx, UsageEnd{Hash: "gone", At: clk.now().Add(-time.Hour)})) // a clock went back

	rows, err := s.CostReport(ctx, 0)
	must(t, err)
	type row struct {
		hash, status string
		hours, cost  float64
	}
	var got []row
	for _, r := range rows {
		got = append(got, row{r.Hash, r.Status, math.Round(r.DurationSec) / 3600, math.Round(r.TotalCost*1e6) / 1e6})
		if r.User != "me" || r.NumNodes != 2 || r.Resources["cpus"] != "4+" || r.ResourcesStr != "2x x" || r.Name != "name-"+r.Hash {
			t.Errorf("%+v", r)
		}
	}
	want := []row{{"new", "UP", 2, 12}, {"gone", "TERMINATED", 0, 0}, {"old", "TERMINATED", 3, 5}}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	if rows, _ = s.CostReport(ctx, 30); len(rows) != 2 || rows[0].Hash != "new" {
		t.Fatalf("%+v", rows)
	}
	if err := s.UsageStart(ctx, UsageStart{Hash: "x"}); err == nil {
		t.Fatal("an interval without a number was accepted")
	}
}
