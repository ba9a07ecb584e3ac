package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// secretPrefix marks a secret whose key is written in base64.
const secretPrefix = "whsec_"

// NewSecret makes a secret of 256 bits, in the form in which it is shown.
func NewSecret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return secretPrefix + base64.StdEncoding.EncodeToString(b)
}

// key is what signs: the decoded part of a whsec_ secret, any other secret as it is.
func key(secret string) ([]byte, error) {
	if rest, coded := strings.CutPrefix(secret, secretPrefix); coded {
		k, err := base64.StdEncoding.DecodeString(rest)
		if err != nil || len(k) == 0 {
			return nil, fmt.Errorf("the webhook secret begins with %s and is not base64 after that", secretPrefix)
		}
		return k, nil
	}
	if secret == "" {
		return nil, fmt.Errorf("the webhook secret is empty")
	}
	return []byte(secret), nil
}

// Sign gives the value of the header webhook-signature: "v1," and the base64 of HMAC-SHA256 over id, Unix time and body,
// joined by dots.
func Sign(secret, id string, at time.Time, body []byte) (string, error) {
	k, err := key(secret)
	if err != nil {
		return "", err
	}
	m := hmac.New(sha256.New, k)
	m.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
	m.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil)), nil
}
