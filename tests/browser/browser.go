// Package browser drives a headless Chromium in tests: it opens pages as a user would, waits for words, and keeps what
// went wrong on them. It knows nothing of the pages.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Page is a browser window.
type Page struct {
	t      *testing.T
	ctx    context.Context
	origin string

	mu       sync.Mutex
	problems []string
}

// Open starts a browser for pages of origin (scheme://host:port), or skips the test where there is none.
func Open(t *testing.T, origin string) *Page {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("needs Chromium or Chrome on the PATH")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WindowSize(1400, 1200))
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	p := &Page{t: t, ctx: ctx, origin: origin}
	if err := chromedp.Listen(ctx, p.hear); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *Page) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, p.origin+"/") && !strings.HasPrefix(u, "data:") && !strings.HasPrefix(u, "blob:") {
			p.problems = append(p.problems, "asks "+u)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError {
			p.problems = append(p.problems, "log: "+e.Entry.Text+" "+e.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		what := e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			what += " " + x.Description
		}
		p.problems = append(p.problems, "exception: "+what+" "+e.ExceptionDetails.URL)
	}
}

// Problems are foreign requests, console errors and exceptions so far.
func (p *Page) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.problems...)
}

// Visit opens a page and waits until it, or a frame in it, shows all the words.
func (p *Page) Visit(url string, words ...string) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.Navigate(url)); err != nil {
		p.t.Fatal(err)
	}
	for _, word := range words {
		if err := p.wait(word); err != nil {
			p.shot()
			p.t.Fatalf("%s: %v", url, err)
		}
	}
	p.shot()
}

// URL is where the window is now.
func (p *Page) URL() string {
	p.t.Helper()
	url, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("location.href"))
	if err != nil {
		p.t.Fatal(err)
	}
	return url
}

func (p *Page) wait(text string) error {
	script := fmt.Sprintf(`(() => {
		const all = d => (d.documentElement?.innerText ?? '') + [...d.querySelectorAll('iframe')].map(f => f.contentDocument ? all(f.contentDocument) : '').join(' ');
		return all(document).includes(%q);
	})()`, text)
	deadline := time.Now().Add(time.Minute)
	for {
		found, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](script))
		if err != nil {
			return err
		}
		if found {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the page does not show " + text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// shot keeps a picture of the page in SKYLOOM_TEST_SHOTS, if that names a folder.
func (p *Page) shot() {
	p.t.Helper()
	dir := os.Getenv("SKYLOOM_TEST_SHOTS")
	if dir == "" {
		return
	}
	time.Sleep(500 * time.Millisecond)
	picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	f, err := os.CreateTemp(dir, "page-*.png")
	if err != nil {
		p.t.Fatal(err)
	}
	_, err = f.Write(picture)
	if err := errors.Join(err, f.Close()); err != nil {
		p.t.Fatal(err)
	}
	p.t.Log(f.Name())
}
