// Package lab makes real machines for tests: hosts that are Linux namespaces (network, PID, mount, UTS, IPC, cgroup)
// on a bridge, each with its own address, disk, processes, limits and a real sshd. A host boots in well under a second,
// can be cut off, slowed down, killed, rebooted and made anew, and tells what really runs on it.
//
// What it owns: the namespaces, the network between them, the hosts' disks (an overlay over the machine's own files, or
// over the tree named by SKYLOOM_LAB_ROOTFS), their cgroups, and a folder per lab below /run/skyloom-lab.
// What it must not know: anything of Skyloom. It offers machines, as a cloud would.
//
// Invariants:
//   - A lab lives as long as its process: the hosts are children of threads of it and end with it, however it ends. What
//     cannot end by itself (mounts, cgroups, folders) the next lab on the machine sweeps up; a file lock tells the living.
//   - Labs do not meet: each has network namespaces of its own, so that all may use the same addresses, and nothing
//     of the machine's own network is touched.
//   - A host's disk lies outside of the host: Kill and Reboot keep it, Terminate and Recreate do not.
//   - Nothing below the overlay is ever written: the machine's own files stay as they are.
//
// It needs Linux and root. Tests that use it carry `//go:build linux` and skip elsewhere by New, which says why.
// With SKYLOOM_LAB=require in the environment a lab that cannot be made fails the test in place of skipping it.
package lab
