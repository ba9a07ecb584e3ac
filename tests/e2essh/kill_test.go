package e2essh

import (
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// TestServerKilled kills the server at each moment of the SSH provider; what was asked for comes to its end all the same,
// once, and nothing is left on the hosts.
func TestServerKilled(t *testing.T) {
	needLong(t)
	l := lab.New(t, lab.Options{Hosts: 2, Host: lab.HostSpec{CPUs: 4, MemoryMB: 4 << 10}})
	for _, point := range []string{"ssh.create-after-note", "ssh.create-after-make", "ssh.delete-after-free"} {
		t.Run(point, func(t *testing.T) {
			s := newSite(t, l, "")
			s.kill()
			s.extra = []string{"SKYLOOM_FAILPOINTS=" + point + "=kill", "SKYLOOM_FAILPOINT_DIR=" + t.TempDir()}
			s.start()
			launch := func() {
				s.try(3*time.Minute, "launch", "-y", "-d", "-c", "k", "--infra", "ssh/lab", "--num-nodes", "2", "--cpus", "2", "--memory", "1", "echo ran >> ~/runs; sleep 300")
			}
			down := func() { s.try(3*time.Minute, "down", "-y", "k") }
			if !strings.Contains(point, "delete") {
				s.dies(launch)
				s.start()
			} else {
				launch()
			}
			s.until(3*time.Minute, "the job runs", func() bool {
				out, err := s.try(20*time.Second, "queue", "k")
				return err == nil && strings.Contains(out, "RUNNING")
			})
			for _, h := range l.Hosts() {
				if n := len(claimed(t, h)); n != 1 {
					t.Errorf("%d claims on %s", n, h.Name)
				}
			}
			s.sky("exec", "k", "wc -l < ~/runs").has("1")
			if strings.Contains(point, "delete") {
				s.dies(down)
				s.start()
			} else {
				down()
			}
			s.until(3*time.Minute, "nothing is left", func() bool {
				for _, h := range l.Hosts() {
					if len(claimed(t, h)) > 0 || len(agents(t, h)) > 0 {
						return false
					}
				}
				out, err := s.try(20*time.Second, "status")
				return err == nil && !strings.Contains(out, "ssh (lab)")
			})
		})
	}
}
