package codec

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	keySize     = 32 // AES-256
	ringVersion = 1
	// reloadEvery bounds how often an unknown key id makes us look at the file again.
	reloadEvery = time.Second
)

// Ring holds the keys: the active one encrypts, all decrypt. It is safe for concurrent use.
type Ring struct {
	path string
	now  func() time.Time

	mu       sync.RWMutex
	active   string
	keys     []ringKey
	aeads    map[string]cipher.AEAD
	reloaded time.Time
}

type ringFile struct {
	Version int       `json:"version"`
	Active  string    `json:"active"`
	Keys    []ringKey `json:"keys"`
}

type ringKey struct {
	ID      string    `json:"id"` // derived from the key, see keyID
	Created time.Time `json:"created"`
	Key     []byte    `json:"key"`
}

// LoadRing reads the key ring, or makes one with a first key. The file must be readable by its owner only (group
// readable at most, as mounted secrets are).
func LoadRing(path string) (*Ring, error) {
	r := &Ring{path: path, now: time.Now}
	err := r.Reload()
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	key, err := newKey(r.now())
	if err != nil {
		return nil, err
	}
	err = writeRing(path, ringFile{Version: ringVersion, Active: key.ID, Keys: []ringKey{key}}, false)
	if err != nil && !errors.Is(err, fs.ErrExist) { // exists: another process was quicker, use its ring
		return nil, fmt.Errorf("key ring %s: make it: %w", path, err)
	}
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload reads the file again: another replica may have rotated.
func (r *Ring) Reload() error {
	file, err := readRing(r.path)
	if err != nil {
		return err
	}
	aeads := make(map[string]cipher.AEAD, len(file.Keys))
	for _, k := range file.Keys {
		if aeads[k.ID], err = newAEAD(k.Key); err != nil {
			return fmt.Errorf("key ring %s: key %s: %w", r.path, k.ID, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active, r.keys, r.aeads, r.reloaded = file.Active, file.Keys, aeads, r.now()
	return nil
}

// Rotate adds a new key, makes it the active one and writes the file. Replicas that share the file decrypt with it at
// once, since they look again at an unknown id, and encrypt with it after Reload or a restart.
func (r *Ring) Rotate() (id string, err error) {
	if err := r.Reload(); err != nil {
		return "", err
	}
	key, err := newKey(r.now())
	if err != nil {
		return "", err
	}
	r.mu.RLock()
	keys := append(slices.Clone(r.keys), key)
	r.mu.RUnlock()
	if err := writeRing(r.path, ringFile{Version: ringVersion, Active: key.ID, Keys: keys}, true); err != nil {
		return "", fmt.Errorf("key ring %s: rotate: %w", r.path, err)
	}
	return key.ID, r.Reload()
}

// Active is the id of the key that encrypts.
func (r *Ring) Active() string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.active
}

// IDs lists all keys, oldest first.
func (r *Ring) IDs() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ids := make([]string, len(r.keys))
	for i, k := range r.keys {
		ids[i] = k.ID
	}
	return ids
}

func (r *Ring) sealer() (string, cipher.AEAD) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.active, r.aeads[r.active]
}

func (r *Ring) opener(id string) (cipher.AEAD, error) {
	r.mu.RLock()
	aead, stale := r.aeads[id], r.now().Sub(r.reloaded) >= reloadEvery
	r.mu.RUnlock()
	if aead == nil && stale {
		if err := r.Reload(); err != nil {
			return nil, err
		}
		r.mu.RLock()
		aead = r.aeads[id]
		r.mu.RUnlock()
	}
	if aead == nil {
		return nil, &UnknownKeyError{ID: id, Ring: r.path, Have: r.IDs()}
	}
	return aead, nil
}

// UnknownKeyError says that a payload was encrypted with a key that the ring does not hold.
type UnknownKeyError struct {
	ID   string
	Ring string
	Have []string
}

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf("payload encrypted with key %q, which the key ring %s does not hold (it holds %s): "+
		"put back the ring from its backup, or copy it from the server that wrote the payload", e.ID, e.Ring, strings.Join(e.Have, ", "))
}

func newKey(now time.Time) (ringKey, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return ringKey{}, fmt.Errorf("make a key: %w", err)
	}
	return ringKey{ID: keyID(key), Created: now.UTC().Truncate(time.Second), Key: key}, nil
}

// keyID is a fingerprint: an id can't come to mean another key, and a damaged key is noticed.
func keyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("skyloom key id\x00"), key...))
	return hex.EncodeToString(sum[:8])
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func readRing(path string) (ringFile, error) {
	var file ringFile
	info, err := os.Stat(path)
	if err != nil {
		return file, fmt.Errorf("key ring: %w", err)
	}
	if info.Mode().Perm()&0o037 != 0 {
		return file, fmt.Errorf("key ring %s: others can read or write it (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return file, fmt.Errorf("key ring: %w", err)
	}
	damaged := func(why string) error {
		return fmt.Errorf("key ring %s: %s: put it back from its backup; without its keys the workflow history can't be read", path, why)
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return file, damaged(err.Error())
	}
	if file.Version != ringVersion {
		return file, fmt.Errorf("key ring %s: format version %d, this server knows %d: install the version that wrote it", path, file.Version, ringVersion)
	}
	active := false
	for _, k := range file.Keys {
		if len(k.Key) != keySize || k.ID != keyID(k.Key) {
			return file, damaged(fmt.Sprintf("key %q does not match its id", k.ID))
		}
		active = active || k.ID == file.Active
	}
	if !active {
		return file, damaged(fmt.Sprintf("its active key %q is missing", file.Active))
	}
	return file, nil
}

// writeRing puts the file in place in one step. Without replace it fails with fs.ErrExist if there is one.
func writeRing(path string, file ringFile, replace bool) error {
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if replace {
		return os.Rename(f.Name(), path)
	}
	return os.Link(f.Name(), path)
}
