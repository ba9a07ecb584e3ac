//go:build linux

package sharedhost

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// watchBeat is how often a watch shows that it lives.
const watchBeat = 10 * time.Second

// watch tells the nodes of an installation at first, and then whenever one changes: a Reply per line between the marks'
// first and the end of its input. An empty line shows that it lives.
func (h *host) watch(nonce string) int {
	ended := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(ended) }()
	every := time.Duration(h.req.Interval) * time.Millisecond
	if every <= 0 {
		every = time.Second
	}
	fmt.Printf("\n%s\n", Begin(nonce))
	last := ""
	beat := time.Now()
	for {
		nodes, err := h.list(context.Background())
		b, _ := json.Marshal(Reply{Nodes: nodes, Error: asError(err)})
		switch {
		case string(b) != last:
			last = string(b)
			if _, err := fmt.Println(last); err != nil {
				return 0
			}
			beat = time.Now()
		case time.Since(beat) > watchBeat:
			if _, err := fmt.Println(); err != nil {
				return 0
			}
			beat = time.Now()
		}
		select {
		case <-ended:
			return 0
		case <-time.After(every):
		}
	}
}
