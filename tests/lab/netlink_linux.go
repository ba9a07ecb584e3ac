package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// netlink speaks the little of rtnetlink that a lab needs. The socket belongs to the namespace in which it was opened,
// whichever thread uses it later.
type netlink struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf [16 << 10]byte
}

// openNetlink must run on a thread in the namespace that it is for.
func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	tv := unix.NsecToTimeval((60 * time.Second).Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

// call sends one request and waits for its answer: the payload of a data message, or nil for a bare acknowledgement.
func (n *netlink) call(typ, flags uint16, body []byte) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return nil, net.ErrClosed
	}
	n.seq++
	msg := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body))
	ne := binary.NativeEndian
	ne.PutUint32(msg[0:], uint32(unix.NLMSG_HDRLEN+len(body)))
	ne.PutUint16(msg[4:], typ)
	ne.PutUint16(msg[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	ne.PutUint32(msg[8:], n.seq)
	if err := unix.Sendto(n.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var data []byte
	for {
		got, _, err := unix.Recvfrom(n.fd, n.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		for b := n.buf[:got]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(ne.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return nil, errors.New("netlink: a cut-off answer")
			}
			payload, seq := b[unix.NLMSG_HDRLEN:size], ne.Uint32(b[8:])
			kind := ne.Uint16(b[4:])
			b = b[min(len(b), (size+3)&^3):]
			switch {
			case seq != n.seq: // of an earlier request that timed out
			case kind == unix.NLMSG_ERROR:
				if code := -int32(ne.Uint32(payload)); code != 0 {
					return nil, unix.Errno(code)
				}
				return data, nil
			default:
				data = append([]byte(nil), payload...)
			}
		}
	}
}

// attr is one attribute, value padded to four bytes.
func attr(kind uint16, value []byte) []byte {
	b := make([]byte, 4, 4+len(value)+3)
	binary.NativeEndian.PutUint16(b[0:], uint16(4+len(value)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func attrString(kind uint16, s string) []byte { return attr(kind, append([]byte(s), 0)) }

func attrUint32(kind uint16, v uint32) []byte {
	return attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func cat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// ifinfo is struct ifinfomsg.
func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func (n *netlink) index(name string) (int, error) {
	b, err := n.call(unix.RTM_GETLINK, 0, cat(ifinfo(0, 0, 0), attrString(unix.IFLA_IFNAME, name)))
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", name, err)
	}
	if len(b) < unix.SizeofIfInfomsg {
		return 0, fmt.Errorf("link %s: no answer", name)
	}
	return int(binary.NativeEndian.Uint32(b[4:])), nil
}

func (n *netlink) addBridge(name string) error {
	_, err := n.call(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, cat(ifinfo(0, unix.IFF_UP, unix.IFF_UP),
		attrString(unix.IFLA_IFNAME, name),
		attr(unix.IFLA_LINKINFO, attrString(unix.IFLA_INFO_KIND, "bridge"))))
	return wrap(err, "bridge "+name)
}

// addVeth makes a wire: name with the hardware address mac here, peer in the namespace peerNS.
func (n *netlink) addVeth(name string, mac net.HardwareAddr, peer string, peerNS int) error {
	const vethPeer = 1 // VETH_INFO_PEER
	other := cat(ifinfo(0, 0, 0), attrString(unix.IFLA_IFNAME, peer), attrUint32(unix.IFLA_NET_NS_FD, uint32(peerNS)))
	_, err := n.call(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, cat(ifinfo(0, unix.IFF_UP, unix.IFF_UP),
		attrString(unix.IFLA_IFNAME, name), attr(unix.IFLA_ADDRESS, mac),
		attr(unix.IFLA_LINKINFO, cat(attrString(unix.IFLA_INFO_KIND, "veth"), attr(unix.IFLA_INFO_DATA, attr(vethPeer, other))))))
	return wrap(err, "wire "+name)
}

// setLink switches a link on or off; master, unless 0, is the bridge that it becomes a port of.
func (n *netlink) setLink(name string, up bool, master int) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	b := cat(ifinfo(0, flags, unix.IFF_UP), attrString(unix.IFLA_IFNAME, name))
	if master != 0 {
		b = append(b, attrUint32(unix.IFLA_MASTER, uint32(master))...)
	}
	_, err := n.call(unix.RTM_NEWLINK, 0, b)
	return wrap(err, "link "+name)
}

// pass lets a bridge's port forward, or drop everything both ways. Unlike a link that goes down it shows at neither end.
func (n *netlink) pass(port string, on bool) error {
	i, err := n.index(port)
	if err != nil {
		return err
	}
	state := []byte{0} // BR_STATE_DISABLED
	if on {
		state[0] = 3 // BR_STATE_FORWARDING
	}
	info := ifinfo(i, 0, 0)
	info[0] = unix.AF_BRIDGE
	_, err = n.call(unix.RTM_SETLINK, 0, cat(info, attr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, attr(1, state)))) // IFLA_BRPORT_STATE
	return wrap(err, "port "+port)
}

func (n *netlink) addAddr(name string, ip net.IP, prefix uint8) error {
	i, err := n.index(name)
	if err != nil {
		return err
	}
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = unix.AF_INET, prefix
	binary.NativeEndian.PutUint32(b[4:], uint32(i))
	_, err = n.call(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		cat(b, attr(unix.IFA_LOCAL, ip.To4()), attr(unix.IFA_ADDRESS, ip.To4())))
	return wrap(err, "address "+ip.String())
}

func (n *netlink) addDefaultRoute(gateway net.IP) error {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[4], b[5], b[7] = unix.AF_INET, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RTN_UNICAST
	_, err := n.call(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, cat(b, attr(unix.RTA_GATEWAY, gateway.To4())))
	return wrap(err, "default route")
}

// limit holds what leaves by the link to rate bytes a second, with a token bucket; 0 takes the limit away.
func (n *netlink) limit(name string, rate int64) error {
	i, err := n.index(name)
	if err != nil {
		return err
	}
	b := make([]byte, 20) // struct tcmsg
	binary.NativeEndian.PutUint32(b[4:], uint32(i))
	binary.NativeEndian.PutUint32(b[12:], 0xffffffff) // TC_H_ROOT
	if rate <= 0 {
		_, err := n.call(unix.RTM_DELQDISC, 0, b)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			err = nil // it had none
		}
		return wrap(err, "tbf of "+name)
	}
	const parms, rate64, burst = 1, 4, 6 // TCA_TBF_*
	q := make([]byte, 36)                // struct tc_tbf_qopt: two ratespecs, limit, buffer, mtu
	q[1] = 1                             // TC_LINKLAYER_ETHERNET: no rate table needed
	binary.NativeEndian.PutUint32(q[8:], uint32(min(rate, 1<<32-1)))
	binary.NativeEndian.PutUint32(q[24:], uint32(max(rate/5, 64<<10)))
	_, err = n.call(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, cat(b, attrString(1, "tbf"), attr(2, cat(
		attr(parms, q), attr(rate64, binary.NativeEndian.AppendUint64(nil, uint64(rate))),
		attrUint32(burst, uint32(min(max(rate/50, 16<<10), 1<<20)))))))
	return wrap(err, "tbf of "+name)
}

func wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
