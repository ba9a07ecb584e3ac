package faults

import (
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/faults/world"
)

const quick = "resources: {cpus: 2+}\nrun: echo hello\n"

func TestPlain(t *testing.T) {
	world.Run(t, world.Options{}, func(w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		t.Log(res)
		w.Sleep(time.Minute)
		w.Converge(time.Hour, "c")
		t.Log(w.Story("c"))
	})
}
