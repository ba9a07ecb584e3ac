package activities

import (
	"context"
	"fmt"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// AfterInput asks how it stands with the jobs that a managed job waits for.
type AfterInput struct {
	JobID    int64    `json:"job_id"`
	Workflow string   `json:"workflow"` // to signal
	After    []string `json:"after"`
}

// AfterOutput tells whether the wait is over. Neither Met nor Never: it goes on, for what Why says.
type AfterOutput struct {
	Met   bool   `json:"met,omitempty"`
	Never string `json:"never,omitempty"` // why it can no longer end well
	Why   string `json:"why,omitempty"`
}

// WaitForJobs notes what a managed job waits for, and tells how it stands. The note makes the server signal the job when
// that changes. Idempotent: the answer is how it stands now.
func (a *Activities) WaitForJobs(ctx context.Context, in AfterInput) (AfterOutput, error) {
	on, err := api.ParseAfter(in.After)
	if err != nil {
		return AfterOutput{Never: err.Error()}, nil
	}
	waits, err := a.Store.WaitForJobs(ctx, in.JobID, in.Workflow, on)
	if err != nil {
		return AfterOutput{}, err
	}
	if never := store.NeverWords(waits); never != "" {
		return AfterOutput{Never: never}, nil
	}
	if why := store.WaitWords(waits); why != "" {
		return AfterOutput{Why: why}, nil
	}
	var words []string
	for _, w := range waits[:min(len(waits), 3)] {
		words = append(words, fmt.Sprintf("job %d has %s", w.On.JobID, w.Status))
	}
	if more := len(waits) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("%d more have ended", more))
	}
	return AfterOutput{Met: true, Why: strings.Join(words, ", ")}, nil
}
