// Command noise prints so many bytes of package noise: `noise BYTES FILE`. Halfway it waits until the file is there.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/tests/e2essh/noise"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "noise:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: noise BYTES FILE")
	}
	size, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil {
		return err
	}
	s := noise.New(size)
	var n int64
	waited := false
	for b := s.Next(); b != nil; b = s.Next() {
		m, err := os.Stdout.Write(b)
		n += int64(m)
		if err != nil {
			return err
		}
		for n > size/2 && !waited {
			_, err := os.Stat(os.Args[2])
			if waited = err == nil; !waited {
				time.Sleep(50 * time.Millisecond)
			}
		}
	}
	return nil
}
