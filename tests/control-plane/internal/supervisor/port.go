package supervisor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// port is a TCP port on 127.0.0.1 that nobody else gets as long as it is held: a
// socket that is bound to it but does not listen. kube-apiserver can bind it too
// (with --permit-port-sharing), which leaves no moment in which another process
// could take it.
type port struct {
	socket int
	number int
}

func reservePort() (port, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return port{}, fmt.Errorf("cannot make a socket: %w", err)
	}
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return port{}, fmt.Errorf("cannot share a port: %w", err)
	}
	if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return port{}, fmt.Errorf("cannot bind a port on 127.0.0.1: %w", err)
	}
	address, err := unix.Getsockname(socket)
	if err != nil {
		return port{}, err
	}
	return port{socket: socket, number: address.(*unix.SockaddrInet4).Port}, nil
}

func (p port) release() { _ = unix.Close(p.socket) }
