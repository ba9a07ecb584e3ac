// Command gateway serves a folder as an object store that speaks the S3 protocol, for tests: VersityGW on files. It has two accounts:
// that of the flags, which owns what it makes, and one named guest with the same secret, which may do nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	dir := flag.String("dir", "", "folder for objects and accounts; made if it is missing")
	addr := flag.String("addr", "127.0.0.1:7070", "where to listen: an address, or the path of a socket")
	access := flag.String("access", "owner", "access key of the owner")
	secret := flag.String("secret", "", "secret key of both accounts")
	region := flag.String("region", "us-east-1", "of every bucket")
	flag.Parse()
	if err := run(*dir, *addr, *access, *secret, *region); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func run(dir, addr, access, secret, region string) error {
	if dir == "" || secret == "" {
		return fmt.Errorf("-dir and -secret are needed")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// Attributes stand beside the files: not every file system of a test has room for them in the files themselves.
	data, side, accounts := filepath.Join(dir, "data"), filepath.Join(dir, "attributes"), filepath.Join(dir, "accounts")
	for _, d := range []string{data, side, accounts} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	root := auth.Account{Access: access, Secret: secret, Role: auth.RoleAdmin}
	iam, err := auth.NewInternal(root, accounts)
	if err != nil {
		return err
	}
	if err := iam.CreateAccount(auth.Account{Access: "guest", Secret: secret, Role: auth.RoleUser}); err != nil && !errors.Is(err, auth.ErrUserExists) {
		return err
	}
	attributes, err := meta.NewSideCar(side)
	if err != nil {
		return err
	}
	files, err := posix.New(data, attributes, posix.PosixOpts{SideCarDir: side})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return embedgw.RunVersityGW(ctx, files, &embedgw.Config{RootUserAccess: access, RootUserSecret: secret, Region: region, Ports: []string{addr}, IAMService: iam,
		MaxConnections: 256, MaxRequests: 256, MultipartMaxParts: 10_000, Quiet: true, KeepAlive: true})
}
