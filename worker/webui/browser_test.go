package webui_test

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

// browser finds a headless browser, or skips the test.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("needs Chromium or Chrome on the PATH")
	return ""
}

// TestBrowserShowsTheStory opens a workflow as a user would: encrypted in the engine, clear on the page, and nothing
// asked of anybody but us.
func TestBrowserShowsTheStory(t *testing.T) {
	path := browser(t)
	s := server(t, true)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WindowSize(1400, 1200))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()

	var mu sync.Mutex
	var problems []string
	err := chromedp.Listen(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			if u := e.Request.URL; !strings.HasPrefix(u, s.URL+"/") && !strings.HasPrefix(u, "data:") && !strings.HasPrefix(u, "blob:") {
				problems = append(problems, "asks "+u)
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError {
				problems = append(problems, "log: "+e.Entry.Text+" "+e.Entry.URL)
			}
		case *runtime.EventExceptionThrown:
			problems = append(problems, fmt.Sprintf("exception: %+v", e.ExceptionDetails))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	open := func(url string, words ...string) {
		t.Helper()
		if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
			t.Fatal(err)
		}
		for _, word := range words {
			if err := waitForText(ctx, word); err != nil {
				shot(t, ctx)
				t.Fatalf("%s: %v", url, err)
			}
		}
		shot(t, ctx)
	}
	open(s.URL+"/temporal/", id, "Story")
	open(s.URL+"/temporal/namespaces/skyloom/workflows/story%2Fone", "input "+secret, "step "+secret)
	// It has led us to …/story%2Fone/RUN/timeline.
	url, err := chromedp.Run(ctx, chromedp.Evaluate[string]("location.href"))
	if err != nil {
		t.Fatal(err)
	}
	run := strings.TrimSuffix(url, "/timeline")
	open(run+"/history", "outcome "+secret)
	open(run+"/user-metadata", "summary "+secret, "details "+secret, "waiting, "+secret)
	mu.Lock()
	defer mu.Unlock()
	for _, p := range problems {
		t.Error(p)
	}
}

// waitForText waits until the page, or a frame in it, shows the text.
func waitForText(ctx context.Context, text string) error {
	script := fmt.Sprintf(`(() => {
		const all = d => (d.documentElement?.innerText ?? '') + [...d.querySelectorAll('iframe')].map(f => f.contentDocument ? all(f.contentDocument) : '').join(' ');
		return all(document).includes(%q);
	})()`, text)
	deadline := time.Now().Add(15 * time.Second)
	for {
		found, err := chromedp.Run(ctx, chromedp.Evaluate[bool](script))
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
func shot(t *testing.T, ctx context.Context) {
	t.Helper()
	dir := os.Getenv("SKYLOOM_TEST_SHOTS")
	if dir == "" {
		return
	}
	time.Sleep(500 * time.Millisecond)
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(dir, "page-*.png")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(picture)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	t.Log(f.Name())
}
