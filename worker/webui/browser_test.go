package webui_test

import (
	"strings"
	"testing"

	"github.com/skyloom/skyloom/tests/browser"
)

// TestBrowserShowsTheStory opens a workflow as a user would: encrypted in the engine, clear on the page, and nothing
// asked of anybody but us.
func TestBrowserShowsTheStory(t *testing.T) {
	s := server(t, true)
	page := browser.Open(t, s.URL)
	page.Visit(s.URL+"/temporal/", id, "Story")
	page.Visit(s.URL+"/temporal/namespaces/skyloom/workflows/story%2Fone", "input "+secret, "step "+secret)
	// It has led us to …/story%2Fone/RUN/timeline.
	run := strings.TrimSuffix(page.URL(), "/timeline")
	page.Visit(run+"/history", "outcome "+secret)
	page.Visit(run+"/user-metadata", "summary "+secret, "details "+secret, "waiting, "+secret)
	for _, p := range page.Problems() {
		t.Error(p)
	}
}
