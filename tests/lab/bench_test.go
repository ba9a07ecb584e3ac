//go:build linux

package lab

import "testing"

// BenchmarkReboot is one host's power cut and boot until its sshd listens.
func BenchmarkReboot(b *testing.B) {
	l := New(b, Options{Hosts: 1})
	before := cpu()
	for b.Loop() {
		if err := l.Host(0).Reboot(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu()-before).Milliseconds())/float64(b.N), "cpu-ms/op")
}
