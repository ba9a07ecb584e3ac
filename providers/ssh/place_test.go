package ssh

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

func info(cpus, free float64, gpus ...string) *sharedhost.Info {
	i := &sharedhost.Info{CPUs: cpus, MemoryGB: 64, FreeCPUs: free, FreeMemoryGB: 64, DiskFreeGB: 10}
	for n, g := range gpus {
		id := fmt.Sprint("GPU-", n)
		name, used, _ := strings.Cut(g, "/")
		i.GPUs = append(i.GPUs, sharedhost.GPU{ID: id, Name: name})
		if used == "" {
			i.FreeGPUs = append(i.FreeGPUs, id)
		}
	}
	return i
}

func TestOrder(t *testing.T) {
	cpu := providers.NodeSpec{CPUs: 2, MemoryGB: 2}
	gpu := providers.NodeSpec{CPUs: 2, MemoryGB: 2, Accelerator: "h100", AcceleratorCount: 2}
	all := []candidate{
		{name: "busy", info: info(8, 3)},
		{name: "down", info: info(8, 8), err: errors.New("down")},
		{name: "empty", info: info(8, 8)},
		{name: "full", info: info(8, 1)},
		{name: "unknown"},
		{name: "small", info: info(1, 1)},
		{name: "gpus", info: info(8, 8, "H100", "H100", "H100/used", "H100")},
		{name: "other", info: info(8, 8, "A100", "A100")},
		{name: "taken", info: info(8, 8, "H100/used", "H100/used", "H100")},
	}
	names := func(try []int) (out []string) {
		for _, i := range try {
			out = append(out, all[i].name)
		}
		return out
	}
	try, never := order(all, cpu)
	if got, want := names(try), []string{"empty", "busy", "gpus", "other", "taken", "unknown", "full", "down"}; !reflect.DeepEqual(got, want) {
		t.Errorf("without GPUs: %v, want %v", got, want)
	}
	all[2].expected = []providers.NodeSpec{cpu, cpu, cpu}
	if try, _ := order(all, cpu); names(try)[0] != "busy" {
		t.Errorf("beside three others that are about to come: %v", names(try))
	}
	all[6].expected = []providers.NodeSpec{gpu}
	if try, _ := order(all, gpu); !reflect.DeepEqual(names(try), []string{"unknown", "taken", "gpus", "down"}) {
		t.Errorf("with GPUs, beside another: %v", names(try))
	}
	all[2].expected, all[6].expected = nil, nil
	if len(never) != 1 || !strings.Contains(never[5], "it has 1 CPUs, 2 asked for") {
		t.Errorf("never: %v", never)
	}
	try, never = order(all, gpu)
	if got, want := names(try), []string{"gpus", "unknown", "taken", "down"}; !reflect.DeepEqual(got, want) {
		t.Errorf("with GPUs: %v, want %v", got, want)
	}
	if !strings.Contains(never[7], "it has 0 × h100, 2 asked for") {
		t.Errorf("never: %v", never)
	}
}

func TestReasonsAreBounded(t *testing.T) {
	var r reasons
	for i := range 50 {
		r.add(fmt.Sprint("h", i), "down")
		r.add(fmt.Sprint("h", i), "full")
	}
	s := r.String()
	if strings.Contains(s, "down") || !strings.HasSuffix(s, "and 20 more") {
		t.Error(s)
	}
}

// TestAuthority: nodes of one cluster trust each other, and nobody else's.
func TestAuthority(t *testing.T) {
	a, err := newAuthority("c")
	if err != nil {
		t.Fatal(err)
	}
	b, err := newAuthority("c")
	if err != nil {
		t.Fatal(err)
	}
	n, err := a.issue("c-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair([]byte(n.Cert), []byte(n.Key)); err != nil {
		t.Error(err)
	}
	block, _ := pem.Decode([]byte(n.Cert))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(ca string) error {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(ca))
		_, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}
	if err := verify(n.CA); err != nil {
		t.Error(err)
	}
	if verify(b.Cert) == nil {
		t.Error("another cluster's authority vouches for the node")
	}
	if _, err := (&authority{}).issue("x"); err == nil {
		t.Error("a damaged authority issues keys")
	}
}
