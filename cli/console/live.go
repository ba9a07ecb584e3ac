package console

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Live shows what is going on: on a terminal one moving line with the time it has taken, else a plain line per step.
// One can be active per console. Its methods may be called from any goroutine.
type Live struct {
	c     *Console
	now   func() time.Time
	text  string
	since time.Time
	shown bool
	frame int
	stop  chan struct{}
	done  chan struct{}
}

// StartLive begins a live display; Close ends it. now is the clock.
func (c *Console) StartLive(now func() time.Time) *Live {
	l := &Live{c: c, now: now, stop: make(chan struct{}), done: make(chan struct{})}
	c.mu.Lock()
	c.live = l
	c.mu.Unlock()
	if !c.Moving {
		close(l.done)
		return l
	}
	go l.run()
	return l
}

func (l *Live) run() {
	defer close(l.done)
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-t.C:
			l.c.mu.Lock()
			l.frame++
			l.draw()
			l.c.mu.Unlock()
		}
	}
}

// Step says what is going on now. The step before it, if any, is left standing as done.
func (l *Live) Step(text string) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.finish(l.c.ErrStyle(Green, "✓"), l.text)
	l.text, l.since = text, l.now()
	if !l.c.Moving {
		fmt.Fprintln(l.c.Err, text)
		return
	}
	l.draw()
}

// Update changes the text of the present step; when lines can't move it prints the text only if keep is set.
func (l *Live) Update(text string, keep bool) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if text == l.text {
		return
	}
	if l.text == "" {
		l.since = l.now()
	}
	l.text = text
	if !l.c.Moving {
		if keep {
			fmt.Fprintln(l.c.Err, text)
		}
		return
	}
	l.draw()
}

// Done ends the present step as done, with another text if one is given.
func (l *Live) Done(text string) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if text == "" {
		text = l.text
	} else if !l.c.Moving {
		fmt.Fprintln(l.c.Err, text)
	}
	l.finish(l.c.ErrStyle(Green, "✓"), text)
}

// Fail ends the present step as failed.
func (l *Live) Fail() {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.finish(l.c.ErrStyle(Red, "✗"), l.text)
}

// Drop forgets the present step without a trace.
func (l *Live) Drop() {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.erase()
	l.text = ""
}

// Close ends the display. The present step is dropped.
func (l *Live) Close() {
	l.Drop()
	l.c.mu.Lock()
	if l.c.live == l {
		l.c.live = nil
		if l.c.Moving {
			close(l.stop)
		}
	}
	l.c.mu.Unlock()
	<-l.done
}

func (l *Live) finish(mark, text string) {
	if l.text == "" {
		return
	}
	l.erase()
	if l.c.Moving && text != "" {
		fmt.Fprintf(l.c.Err, "%s %s%s\n", mark, text, l.c.ErrStyle(Dim, elapsed(l.now().Sub(l.since))))
	}
	l.text = ""
}

// erase and draw are called with the console locked.
func (l *Live) erase() {
	if l.shown {
		io.WriteString(l.c.Err, "\r\x1b[K")
		l.shown = false
	}
}

const frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

func (l *Live) draw() {
	if !l.c.Moving || l.text == "" {
		return
	}
	spin := string([]rune(frames)[l.frame%10])
	tail := elapsed(l.now().Sub(l.since))
	text := Cut(strings.ReplaceAll(l.text, "\n", " "), l.c.errWidth()-3-utf8.RuneCountInString(tail))
	io.WriteString(l.c.Err, "\r\x1b[K"+l.c.ErrStyle(Cyan, spin)+" "+text+l.c.ErrStyle(Dim, tail))
	l.shown = true
}

// elapsed is nothing below a tenth of a second.
func elapsed(d time.Duration) string {
	switch {
	case d < 100*time.Millisecond:
		return ""
	case d < time.Minute:
		return fmt.Sprintf(" (%.1fs)", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf(" (%dm %02ds)", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf(" (%dh %02dm)", int(d.Hours()), int(d.Minutes())%60)
}

// Cut shortens s to n columns, with an ellipsis.
func Cut(s string, n int) string {
	if n <= 0 || utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(n-1, 0)]) + "…"
}
