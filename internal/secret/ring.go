package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Ring is a set of keys in a file: one seals, all open. Back it up beside the database, not with it.
type Ring struct {
	path string
	mu   sync.RWMutex
	file ringFile
	aead map[string]cipher.AEAD
}

type ringFile struct {
	Active string            `json:"active"`
	Keys   map[string][]byte `json:"keys"` // 32 bytes each, base64 in the file
	// Names makes references and digests. It is never rotated: they have to stay the same.
	Names []byte `json:"names"`
}

const keySize = 32

// LoadRing reads the key file, making it with a first key if there is none.
func LoadRing(path string) (*Ring, error) {
	r := &Ring{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		r.file = ringFile{Keys: map[string][]byte{}, Names: newKey()}
		r.file.addKey()
		err = r.save(true)
		if errors.Is(err, fs.ErrExist) { // another process was first
			return LoadRing(path)
		}
		if err != nil {
			return nil, err
		}
		return r, r.build()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the key file of secrets: %w", err)
	}
	if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key file %s can be read by others; run: chmod 600 %s", path, path)
	}
	if err := json.Unmarshal(data, &r.file); err != nil {
		return nil, fmt.Errorf("the key file %s is damaged (%w); put its backup back: without it stored secrets can't be opened", path, err)
	}
	return r, r.build()
}

func newKey() []byte {
	k := make([]byte, keySize)
	_, _ = rand.Read(k) // never fails
	return k
}

func (f *ringFile) addKey() {
	id := hex.EncodeToString(newKey()[:4])
	f.Keys[id], f.Active = newKey(), id
}

func (r *Ring) build() error {
	aead := map[string]cipher.AEAD{}
	for id, k := range r.file.Keys {
		if len(k) != keySize {
			return fmt.Errorf("the key file %s is damaged: key %s has a wrong length; put its backup back", r.path, id)
		}
		block, err := aes.NewCipher(k)
		if err != nil {
			return err
		}
		if aead[id], err = cipher.NewGCM(block); err != nil {
			return err
		}
	}
	if aead[r.file.Active] == nil || len(r.file.Names) != keySize {
		return fmt.Errorf("the key file %s is damaged: it lacks its active key; put its backup back", r.path)
	}
	r.aead = aead
	return nil
}

// save writes the file whole and durably; with fresh it fails with fs.ErrExist if there is one.
func (r *Ring) save(fresh bool) error {
	data, err := json.MarshalIndent(r.file, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(r.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot write the key file of secrets: %w", err)
	}
	f, err := os.CreateTemp(dir, ".key-*") // 0600
	if err != nil {
		return fmt.Errorf("cannot write the key file of secrets: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
	case fresh:
		err = os.Link(f.Name(), r.path)
	default:
		err = os.Rename(f.Name(), r.path)
	}
	if err == nil {
		if d, derr := os.Open(dir); derr == nil {
			_ = d.Sync()
			_ = d.Close()
		}
	}
	return err
}

// Rotate makes a new key that seals from now on; the others still open.
func (r *Ring) Rotate() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.file
	next := ringFile{Keys: map[string][]byte{}, Names: old.Names}
	for id, k := range old.Keys {
		next.Keys[id] = k
	}
	next.addKey()
	r.file = next
	err := r.save(false)
	if err == nil {
		err = r.build()
	}
	if err != nil {
		r.file = old
	}
	return err
}

// Sealed values are: version 1 · length of the key's id · the id · nonce · ciphertext.
const sealVersion = 1

func (r *Ring) seal(plain []byte, bound string) ([]byte, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a := r.aead[r.file.Active]
	nonce := make([]byte, a.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	out := append([]byte{sealVersion, byte(len(r.file.Active))}, r.file.Active...)
	out = append(out, nonce...)
	return a.Seal(out, nonce, plain, []byte(bound)), nil
}

var errSealed = errors.New("the stored value is damaged or was sealed with a key that is not in the key file; put the key file's backup back, or give the secret again")

func (r *Ring) open(sealed []byte, bound string) ([]byte, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(sealed) < 2 || sealed[0] != sealVersion || len(sealed) < 2+int(sealed[1]) {
		return nil, errSealed
	}
	id, rest := string(sealed[2:2+int(sealed[1])]), sealed[2+int(sealed[1]):]
	a := r.aead[id]
	if a == nil || len(rest) < a.NonceSize() {
		return nil, errSealed
	}
	plain, err := a.Open(nil, rest[:a.NonceSize()], rest[a.NonceSize():], []byte(bound))
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

func (r *Ring) digest(parts ...string) string {
	h := hmac.New(sha256.New, r.file.Names)
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
