package console

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableANSI turns escape sequences on; a console that can't gets plain text.
func enableANSI(c *Console) {
	on := func(f *os.File) bool {
		var mode uint32
		h := windows.Handle(f.Fd())
		return windows.GetConsoleMode(h, &mode) == nil &&
			windows.SetConsoleMode(h, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
	}
	c.OutColor = c.OutColor && on(os.Stdout)
	ok := on(os.Stderr)
	c.ErrColor, c.Moving = c.ErrColor && ok, c.Moving && ok
}
