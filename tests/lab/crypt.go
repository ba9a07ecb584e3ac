package lab

import (
	"bytes"
	"crypto/sha512"
)

// sha512crypt is the password hash "$6$" of crypt(3) with its default 5,000 rounds, as /etc/shadow takes it.
// Source: Ulrich Drepper, "Unix crypt using SHA-256 and SHA-512". salt has at most 16 characters.
func sha512crypt(password, salt string) string {
	p, s := []byte(password), []byte(salt)
	sum := func(parts ...[]byte) []byte {
		h := sha512.Sum512(bytes.Join(parts, nil))
		return h[:]
	}
	stretch := func(b []byte, n int) []byte { return bytes.Repeat(b, n/len(b)+1)[:n] }

	b := sum(p, s, p)
	in := [][]byte{p, s, stretch(b, len(p))}
	for n := len(p); n > 0; n >>= 1 {
		if n&1 == 1 {
			in = append(in, b)
		} else {
			in = append(in, p)
		}
	}
	a := sum(in...)
	ps := stretch(sum(bytes.Repeat(p, len(p))), len(p))
	ss := stretch(sum(bytes.Repeat(s, 16+int(a[0]))), len(s))
	for i := range 5000 {
		first, last := a, ps
		if i&1 == 1 {
			first, last = ps, a
		}
		in := [][]byte{first}
		if i%3 != 0 {
			in = append(in, ss)
		}
		if i%7 != 0 {
			in = append(in, ps)
		}
		a = sum(append(in, last)...)
	}

	out := []byte("$6$" + salt + "$")
	const digits = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	put := func(w uint, n int) {
		for range n {
			out = append(out, digits[w&63])
			w >>= 6
		}
	}
	x, y, z := 0, 21, 42
	for range 21 {
		put(uint(a[x])<<16|uint(a[y])<<8|uint(a[z]), 4)
		x, y, z = y+1, z+1, x+1
	}
	put(uint(a[63]), 2)
	return string(out)
}
