package lab

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread is an operating system thread inside other namespaces than the process. What is started on it begins there.
type thread struct {
	calls chan func()
	end   chan struct{} // closed: the thread is to end
	gone  chan struct{} // closed: it has
}

var errGone = errors.New("the host is not up: boot it first")

// newThread starts a thread and moves it with enter, which runs on it. On an error there is no thread.
func newThread(enter func() error) (*thread, error) {
	th := &thread{calls: make(chan func()), end: make(chan struct{}), gone: make(chan struct{})}
	entered := make(chan error, 1)
	onOwnThread(func() {
		defer close(th.gone)
		err := enter()
		entered <- err
		if err != nil {
			return
		}
		for {
			select {
			case f := <-th.calls:
				f()
			case <-th.end:
				return
			}
		}
	})
	if err := <-entered; err != nil {
		return nil, err
	}
	return th, nil
}

// do runs f on the thread and hands back its error. f must be short, and start no goroutine that relies on the thread.
func (th *thread) do(f func() error) error {
	if th == nil {
		return errGone
	}
	res := make(chan error, 1)
	select {
	case th.calls <- func() { res <- f() }:
		return <-res
	case <-th.gone:
		return errGone
	case <-th.end:
		return errGone
	}
}

// close ends the thread, and with it what was started there to die with it.
func (th *thread) close() {
	if th == nil {
		return
	}
	close(th.end)
	<-th.gone
}

// onOwnThread runs f in a goroutine on a thread that ends with it, never on the process's main thread: that one cannot
// end, and is what /proc/self shows.
func onOwnThread(f func()) { go onThread(f, make(chan struct{})) }

func onThread(f func(), taken chan struct{}) {
	runtime.LockOSThread()
	close(taken)
	if unix.Gettid() == unix.Getpid() {
		next := make(chan struct{})
		go onThread(f, next)
		<-next // only now is it sure that the next one has another thread
		runtime.UnlockOSThread()
		return
	}
	f() // the thread is not unlocked, so the runtime ends it with the goroutine
}

// inNet runs f on a fresh thread in the network namespace ns.
func inNet(ns int, f func() error) error {
	res := make(chan error, 1)
	onOwnThread(func() {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			res <- err
			return
		}
		res <- f()
	})
	return <-res
}
