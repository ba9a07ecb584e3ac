package sshconfig

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	keyType  = "ssh-ed25519"
	keyMagic = "openssh-key-v1\x00"
	keyBlock = "OPENSSH PRIVATE KEY"
)

// Key gives the user's public key (TYPE BASE64), and makes the pair if there is none yet. Two programs that make it at
// once end with the same one.
func (d Dir) Key() (string, error) {
	path := d.KeyFile()
	for range 2 {
		b, err := os.ReadFile(path)
		if err == nil {
			pub, err := publicOf(b)
			if err != nil {
				return "", fmt.Errorf("the SSH key %s is damaged: %w\nRemove the file: a new key is made then", path, err)
			}
			if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
				_ = os.Chmod(path, 0o600) // ssh would refuse it
			}
			line := keyType + " " + base64.StdEncoding.EncodeToString(pub)
			if _, err := os.Stat(path + ".pub"); errors.Is(err, fs.ErrNotExist) {
				_ = replace(path+".pub", []byte(line+" skyloom\n"), 0o644)
			}
			return line, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("the SSH key can't be read: %w", err)
		}
		if err := d.make(); err != nil {
			return "", err
		}
		if err := newKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("the SSH key can't be made: %w", err)
		}
	}
	return "", fmt.Errorf("the SSH key %s comes and goes; is another program removing it?", path)
}

// newKey writes a new private key, whole, unless there is one.
func newKey(path string) error {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".id-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(encodeKey(pub, priv))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(f.Name(), path) // a file system without links
}

// encodeKey is the private key as OpenSSH keeps it, without a passphrase: PROTOCOL.key in its source.
func encodeKey(pub ed25519.PublicKey, priv ed25519.PrivateKey) []byte {
	text := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	public := text(text(nil, keyType), string(pub))
	var check [4]byte
	_, _ = rand.Read(check[:])
	secret := append(check[:], check[:]...)
	secret = text(text(text(secret, keyType), string(pub)), string(priv))
	secret = text(secret, "skyloom")
	for pad := byte(1); len(secret)%8 != 0; pad++ {
		secret = append(secret, pad)
	}
	b := []byte(keyMagic)
	b = text(text(text(b, "none"), "none"), "")
	b = binary.BigEndian.AppendUint32(b, 1)
	b = text(text(b, string(public)), string(secret))
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: b})
}

// publicOf reads the public half, which stands open in the file.
func publicOf(file []byte) ([]byte, error) {
	block, _ := pem.Decode(file)
	if block == nil || block.Type != keyBlock {
		return nil, errors.New("it is no OpenSSH key")
	}
	b, ok := bytes.CutPrefix(block.Bytes, []byte(keyMagic))
	next := func() []byte {
		if !ok || len(b) < 4 {
			ok = false
			return nil
		}
		n := int64(binary.BigEndian.Uint32(b))
		if b = b[4:]; n > int64(len(b)) {
			ok = false
			return nil
		}
		s := b[:n]
		b = b[n:]
		return s
	}
	cipher := string(next())
	next() // key derivation and its options
	next()
	if ok && len(b) >= 4 {
		b = b[4:] // how many keys
	}
	pub := next()
	if !ok || cipher != "none" || !bytes.HasPrefix(pub, []byte("\x00\x00\x00\x0b"+keyType)) {
		return nil, errors.New("it holds no plain " + keyType + " key")
	}
	return pub, nil
}
