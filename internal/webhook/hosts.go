package webhook

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Hosts is the rule which hosts may be reached. The zero value allows all but addresses that no receiver has: link-local
// (where clouds serve their metadata), unspecified and multicast.
type Hosts struct {
	allow, deny []hostRule
}

type hostRule struct {
	name   string       // exact, or with a leading dot: the names below it
	prefix netip.Prefix // of addresses, if valid
}

// ParseHosts reads rules: a name, *.name for the names below it, an address, or a range like 10.0.0.0/8; with ! in front
// it is refused. If any rule allows something, nothing else is allowed. What is refused is refused even if it is allowed
// as well.
func ParseHosts(rules []string) (Hosts, error) {
	var h Hosts
	for _, text := range rules {
		rest, deny := strings.CutPrefix(strings.ToLower(strings.TrimSpace(text)), "!")
		var r hostRule
		if p, err := netip.ParsePrefix(rest); err == nil {
			r.prefix = p.Masked()
		} else if a, err := netip.ParseAddr(rest); err == nil {
			r.prefix = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		} else {
			r.name = strings.TrimPrefix(rest, "*")
			if plain := strings.TrimPrefix(r.name, "."); plain == "" || strings.ContainsAny(plain, "*/:@ ") || strings.HasPrefix(rest, ".") {
				return Hosts{}, fmt.Errorf("%q is no host; write hooks.example.com, *.example.com, 10.0.0.0/8, or one of these with ! in front", text)
			}
		}
		if deny {
			h.deny = append(h.deny, r)
		} else {
			h.allow = append(h.allow, r)
		}
	}
	return h, nil
}

func (r hostRule) names(host string) bool {
	return r.name != "" && (host == r.name || r.name[0] == '.' && strings.HasSuffix(host, r.name))
}

func (r hostRule) holds(a netip.Addr) bool { return r.prefix.IsValid() && r.prefix.Contains(a) }

// MaxURL is the length of an address in bytes.
const MaxURL = 2000

// ParseURL checks the form of an address.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case len(text) > MaxURL:
		return nil, fmt.Errorf("the address has more than %d characters", MaxURL)
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("it is not an http or https address")
	case u.User != nil:
		return nil, errors.New("it holds a password, which whoever sees the job could read; the receiver can tell by the signature who posts")
	case u.Fragment != "":
		return nil, errors.New("the part after # never reaches a receiver; leave it out")
	}
	return u, nil
}

// Check says whether a host may be named. A name may still turn out to point to an address that may not be reached.
func (h Hosts) Check(host string) error {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if a, err := netip.ParseAddr(host); err == nil {
		return h.CheckAddr(host, a)
	}
	if slices.ContainsFunc(h.deny, func(r hostRule) bool { return r.names(host) }) {
		return fmt.Errorf("webhooks to %s are refused by jobs.webhook_hosts", host)
	}
	if len(h.allow) == 0 || slices.ContainsFunc(h.allow, func(r hostRule) bool { return r.names(host) || r.prefix.IsValid() }) {
		return nil
	}
	return fmt.Errorf("webhooks to %s are not among those that jobs.webhook_hosts allows", host)
}

// CheckAddr says whether an address may be reached for a host.
func (h Hosts) CheckAddr(host string, a netip.Addr) error {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	a = a.Unmap().WithZone("")
	holds := func(r hostRule) bool { return r.holds(a) }
	names := func(r hostRule) bool { return r.names(host) }
	switch {
	case slices.ContainsFunc(h.deny, holds), slices.ContainsFunc(h.deny, names):
		return fmt.Errorf("webhooks to %s (%s) are refused by jobs.webhook_hosts", host, a)
	case slices.ContainsFunc(h.allow, holds):
		return nil
	case a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast():
		return fmt.Errorf("webhooks to %s are refused: %s is no address of a receiver", host, a)
	case len(h.allow) == 0, slices.ContainsFunc(h.allow, names):
		return nil
	}
	return fmt.Errorf("webhooks to %s (%s) are not among those that jobs.webhook_hosts allows", host, a)
}
