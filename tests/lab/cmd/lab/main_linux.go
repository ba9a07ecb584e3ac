// Command lab makes hosts to play with: Linux namespaces with an address, a disk and sshd each. They run until `lab down`.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/tests/lab"
)

const usage = `lab makes hosts to play with. It needs Linux and root.

  lab up N [flags]        N hosts in all, h1, h2, …; the flags say what the new ones are like (lab up -h)
  lab down                end them and remove everything
  lab list                the hosts, with what they run
  lab exec CMD...         a command in the hosts' network: only from there can they be reached (lab exec bash)
  lab ssh HOST [CMD...]   by ssh, as the host's user
  lab run HOST CMD...     as root in the host, not by ssh
  lab ps HOST             what runs there          lab changes HOST       what changed on its disk since it was made
  lab cut HOST            off the network          lab join HOST          and on it again
  lab slow HOST BYTES     bytes a second; 0: fast  lab fill|free HOST     its disk becomes full, or has room again
  lab kill HOST           power off                lab boot|reboot HOST   with the same disk
  lab recreate HOST       a new one of that name: fresh disk, other host key
  lab ssh-config          entries for ssh -F       lab pools [NAME]       an ssh_node_pools.yaml

Skyloom on them:
  lab up 3 && lab pools lab > ~/.sky/ssh_node_pools.yaml && lab exec bash
  sky ssh up && sky launch --infra ssh/lab 'hostname'        (in that shell)
`

// socket is where the process that holds the hosts listens.
const socket = "/run/skyloom-lab/cli.sock"

type request struct {
	Args []string
	Want int // up: so many hosts in all
	Spec lab.HostSpec
}

type answer struct{ Out, Err string }

func main() {
	if err := run(os.Args[1:]); err != nil {
		var code exitCode
		if errors.As(err, &code) {
			os.Exit(int(code))
		}
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func run(args []string) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		fmt.Print(usage)
		return nil
	}
	switch args[0] {
	case "serve": // what up starts
		return serve()
	case "up":
		return up(args[1:])
	case "exec":
		if len(args) < 2 {
			return errors.New("exec what? For example: lab exec bash")
		}
		return enter(args[1:])
	case "ssh":
		if len(args) < 2 {
			return errors.New("ssh to which host? lab list names them")
		}
		conf, err := ask(request{Args: []string{"ssh-config-file"}})
		if err != nil {
			return err
		}
		return enter(append([]string{"ssh", "-F", strings.TrimSpace(conf)}, args[1:]...))
	}
	out, err := ask(request{Args: args})
	fmt.Print(out)
	return err
}

func up(args []string) error {
	var q request
	q.Args = []string{"up"}
	fs := flag.NewFlagSet("lab up N", flag.ContinueOnError)
	s := &q.Spec
	fs.StringVar(&s.User, "user", "ubuntu", "who may log in (root: only root)")
	fs.StringVar(&s.Password, "password", "", "takes this password too")
	fs.StringVar(&s.Shell, "shell", "/bin/bash", "login shell")
	sudo := fs.String("sudo", "", "password, none, broken or hangs; empty: without a password")
	hide := fs.String("hide", "", "commands that are missing, like python3,rsync,curl")
	gpus := fs.String("gpus", "", "fake GPUs, like A100-SXM4-80GB:8:81920 (name, how many, MiB each)")
	fs.Float64Var(&s.CPUs, "cpus", 0, "limit in cores")
	fs.IntVar(&s.MemoryMB, "memory", 0, "limit in MiB")
	fs.IntVar(&s.DiskMB, "disk", 4096, "disk in MiB (in memory)")
	fs.StringVar(&s.Arch, "arch", "", "what uname -m tells")
	fs.BoolVar(&s.NoisyRC, "noisy", false, ".bashrc prints")
	fs.BoolVar(&s.ReadOnlyHome, "read-only-home", false, "the home folder cannot be written")
	fs.StringVar(&s.Behind, "behind", "", "reachable only from this host")
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		args = append(args[1:len(args):len(args)], args[0]) // the number may come first
	}
	if err := fs.Parse(args); err != nil {
		return exitCode(2)
	}
	n, err := strconv.Atoi(fs.Arg(0))
	if err != nil || n < 1 || fs.NArg() != 1 {
		return errors.New("up takes one number, how many hosts there are to be: lab up 3")
	}
	q.Want, s.Sudo = n, lab.Sudo(*sudo)
	if *hide != "" {
		s.Hide = strings.Split(*hide, ",")
	}
	if *gpus != "" {
		f := strings.Split(*gpus, ":")
		g := lab.GPU{Name: f[0], Count: 1, MemoryMB: 81920}
		if len(f) > 1 {
			if g.Count, err = strconv.Atoi(f[1]); err != nil {
				return fmt.Errorf("-gpus %s: NAME:COUNT:MIB", *gpus)
			}
		}
		if len(f) > 2 {
			if g.MemoryMB, err = strconv.Atoi(f[2]); err != nil {
				return fmt.Errorf("-gpus %s: NAME:COUNT:MIB", *gpus)
			}
		}
		s.GPUs = []lab.GPU{g}
	}
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
	} else if err := start(); err != nil {
		return err
	}
	out, err := ask(q)
	fmt.Print(out)
	return err
}

// start leaves a process behind that holds the lab, and waits until it listens.
func start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, "serve")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	var said []byte
	for buf := make([]byte, 4096); !strings.HasSuffix(string(said), "ready\n"); {
		n, err := r.Read(buf)
		said = append(said, buf[:n]...)
		if err != nil {
			return errors.New(strings.TrimPrefix(strings.TrimSpace(string(said)), "lab: "))
		}
	}
	return cmd.Process.Release()
}

// ask sends a request to the process that holds the lab.
func ask(q request) (string, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return "", fmt.Errorf("no lab is up (%w): lab up 3", err)
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return "", err
	}
	var a answer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return "", fmt.Errorf("the lab gave no answer: %w", err)
	}
	if code, err := strconv.Atoi(strings.TrimPrefix(a.Err, "exit ")); err == nil {
		return a.Out, exitCode(code)
	}
	if a.Err != "" {
		return a.Out, errors.New(a.Err)
	}
	return a.Out, nil
}

// enter becomes the command, in the hosts' network.
func enter(args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	ns, err := ask(request{Args: []string{"netns"}})
	if err != nil {
		return err
	}
	f, err := os.Open(strings.TrimSpace(ns))
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("the hosts' network: %w (are you root?)", err)
	}
	return syscall.Exec(path, args, os.Environ())
}
