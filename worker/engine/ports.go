package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/primitives"
)

// ports of one run. Only the frontend's is kept, since foreign workers dial it; the inner ones change at each start.
type ports struct {
	Frontend int `json:"frontend"`

	internal, history, matching, worker int
}

const portsFile = "ports.json"

// choosePorts takes the frontend port of the last run if it is free, and free ports for the rest.
func choosePorts(dir string) (ports, error) {
	var p ports
	last, err := lastPorts(dir)
	if err != nil {
		return p, err
	}
	// All are held open until the last is chosen, so that none is given out twice.
	var open []net.Listener
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	listen := func(port int) (int, error) {
		l, err := net.Listen("tcp4", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			return 0, err
		}
		open = append(open, l)
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	if last.Frontend != 0 {
		p.Frontend, _ = listen(last.Frontend)
	}
	for _, port := range []*int{&p.Frontend, &p.internal, &p.history, &p.matching, &p.worker} {
		if *port != 0 {
			continue
		}
		if *port, err = listen(0); err != nil {
			return p, fmt.Errorf("engine: find a free port on %s: %w", loopback, err)
		}
	}
	return p, nil
}

// lastPorts reads the ports of the last run. A file that can't be understood counts as none: it is only a wish.
func lastPorts(dir string) (ports, error) {
	var p ports
	data, err := os.ReadFile(filepath.Join(dir, portsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("engine: read the last ports: %w", err)
	}
	if json.Unmarshal(data, &p) != nil || p.Frontend < 1 || p.Frontend > 65535 {
		return ports{}, nil
	}
	return p, nil
}

func (p ports) save(dir string) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(dir, portsFile), append(data, '\n'))
}

func (p ports) address(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

func (p ports) hosts() map[primitives.ServiceName]static.Hosts {
	host := func(port int) static.Hosts { return static.SingleLocalHost(p.address(port)) }
	return map[primitives.ServiceName]static.Hosts{
		primitives.FrontendService:         host(p.Frontend),
		primitives.InternalFrontendService: host(p.internal),
		primitives.HistoryService:          host(p.history),
		primitives.MatchingService:         host(p.matching),
		primitives.WorkerService:           host(p.worker),
	}
}

// writeFileAtomic replaces a file, readable by its owner only, in one step that survives a crash.
func writeFileAtomic(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
