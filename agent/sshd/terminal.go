package sshd

import (
	"encoding/binary"
	"os"
	"sync"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal is the pseudo terminal of a session.
type terminal struct {
	term   string   // value of TERM
	tty    *os.File // the program's side; closed once the program has it
	master *os.File

	mu   sync.Mutex
	hung bool
}

func openTerminal(p ptyRequest) (*terminal, error) {
	blocking, tty, err := pty.Open()
	if err != nil {
		return nil, err
	}
	// Reading from a terminal must end when it is closed here: that needs a descriptor the runtime can poll.
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	blocking.Close()
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		tty.Close()
		return nil, err
	}
	t := &terminal{term: p.Term, tty: tty, master: os.NewFile(uintptr(fd), "/dev/ptmx")}
	if t.term == "" {
		t.term = "dumb"
	}
	setModes(int(tty.Fd()), []byte(p.Modes))
	return t, t.resize(windowChange{p.Cols, p.Rows, p.WidthPix, p.HeightPix})
}

// resize tells the terminal its size; the program gets SIGWINCH.
func (t *terminal) resize(w windowChange) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hung {
		return os.ErrClosed
	}
	c, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	clip := func(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }
	var ierr error
	err = c.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: clip(w.Rows), Col: clip(w.Cols), Xpixel: clip(w.WidthPix), Ypixel: clip(w.HeightPix)})
	})
	if err == nil {
		err = ierr
	}
	return err
}

// hangUp closes the terminal: what is on it gets SIGHUP.
func (t *terminal) hangUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.hung {
		t.hung = true
		t.master.Close()
		t.tty.Close()
	}
}

// Opcodes of terminal modes, RFC 4254, 8: characters, then flags of input, of the local side and of output.
var (
	modeChars = map[byte]int{
		1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2, 8: unix.VSTART, 9: unix.VSTOP,
		10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 18: unix.VDISCARD,
	}
	modeInput = map[byte]flagBits{
		30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL, 38: unix.IXON,
		39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8,
	}
	modeLocal = map[byte]flagBits{
		50: unix.ISIG, 51: unix.ICANON, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL, 57: unix.NOFLSH, 58: unix.TOSTOP,
		59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
	}
	modeOutput = map[byte]flagBits{70: unix.OPOST, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET}
)

// setModes brings the terminal into the modes of the client's. What is not known is left as it is.
func setModes(fd int, modes []byte) {
	t, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return
	}
	set := func(field *flagBits, bit flagBits, on bool) {
		if on {
			*field |= bit
		} else {
			*field &^= bit
		}
	}
	for len(modes) >= 5 && modes[0] != 0 && modes[0] < 160 {
		op, v := modes[0], binary.BigEndian.Uint32(modes[1:5])
		modes = modes[5:]
		if i, ok := modeChars[op]; ok {
			t.Cc[i] = byte(v) // 255: none
			if v == 255 {
				t.Cc[i] = 0
			}
		} else if bit, ok := modeInput[op]; ok {
			set(&t.Iflag, bit, v != 0)
		} else if bit, ok := modeLocal[op]; ok {
			set(&t.Lflag, bit, v != 0)
		} else if bit, ok := modeOutput[op]; ok {
			set(&t.Oflag, bit, v != 0)
		}
	}
	unix.IoctlSetTermios(fd, setTermios, t)
}
