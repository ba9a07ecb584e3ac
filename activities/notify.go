package activities

import (
	"fmt"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/internal/webhook"
	"github.com/skyloom/skyloom/task"
)

// maxNotify bounds the addresses that are told of one job.
const maxNotify = 20

// noticeStates are the states that can be named.
var noticeStates = []api.ManagedStatus{api.ManagedPending, api.ManagedStarting, api.ManagedRunning, api.ManagedRecovering, api.ManagedCancelling, api.ManagedSucceeded,
	api.ManagedCancelled, api.ManagedFailed, api.ManagedFailedSetup, api.ManagedFailedPrechecks, api.ManagedFailedNoResource}

// notifyOf collects who is told of a submission's states: what the command line says of all tasks, then what each task says
// of itself.
func notifyOf(s *ManagedSpec, body api.JobsLaunchBody, tasks []*task.Task) *api.Error {
	add := func(taskID int, n task.Notify) *api.Error {
		u, err := webhook.ParseURL(n.URL)
		if err != nil {
			return invalid("notify: %q: %v", n.URL, err)
		}
		st := store.NoticeStream{N: len(s.Notify), TaskID: taskID, URL: n.URL, Host: strings.ToLower(u.Host)}
		for _, word := range n.Events {
			if !namesState(word) {
				return invalid("notify: there is no state %q; there are %s", word, strings.ToLower(fmt.Sprint(noticeStates)))
			}
			st.States = append(st.States, strings.ToLower(word))
		}
		if n.Secret != "" {
			if st.SecretRef = body.SecretRefs[n.Secret]; st.SecretRef == "" {
				return invalid("notify: the secret %q, which is to sign the posts, has no value", n.Secret)
			}
		}
		s.Notify = append(s.Notify, st)
		return nil
	}
	for _, u := range body.Notify {
		if e := add(-1, task.Notify{URL: u}); e != nil {
			return e
		}
	}
	for i, t := range tasks {
		for _, n := range t.Notify {
			if e := add(i, n); e != nil {
				return e
			}
		}
	}
	if len(s.Notify) > maxNotify {
		return invalid("notify: %d addresses are more than %d", len(s.Notify), maxNotify)
	}
	return nil
}

func namesState(word string) bool {
	for _, s := range noticeStates {
		if strings.EqualFold(string(s), word) {
			return true
		}
	}
	return false
}
