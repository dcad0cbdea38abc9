// Package supervisor starts the components of a control plane, waits until they
// serve, and sees to it that nothing of them outlives it.
//
// Three ways lead there, since any of the processes can be killed at any time.
// The kernel kills a child when the supervisor dies; each child also ends when
// the pipe on its standard input closes. The janitor, a shell in a session of
// its own, holds the reading end of a pipe whose writing end the supervisor and
// every component keep open: its closing means that all of them are gone, and
// only then the directory is removed.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// The names of the processes, which are also the program's subcommands.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
)

// Config is what the caller decides about a control plane.
type Config struct {
	// Dir holds everything; it must be empty or absent.
	Dir string
	// ReadyFile, if set, is written when the control plane can be used.
	ReadyFile string
	// ExitWithStdin ends the control plane when standard input is closed.
	ExitWithStdin bool
	// Keep leaves Dir behind.
	Keep bool
	// StartTimeout bounds the time until ready.
	StartTimeout time.Duration
}

// Run serves a control plane until it is told to stop, which is no error, or
// until a component ends by itself, which is one.
//
// The caller must be locked to a thread that lives as long as the process.
func Run(config Config) error {
	stop := stopRequests(config.ExitWithStdin)
	if err := makeDir(&config); err != nil {
		return err
	}
	family, err := newFamily(config)
	if err != nil {
		return err
	}
	err = serve(config, family, stop)
	return errors.Join(err, family.end())
}

// serve starts the components and returns when one of them ends or a stop is
// requested.
func serve(config Config, family *family, stop <-chan struct{}) error {
	started := time.Now()
	port, err := reservePort()
	if err != nil {
		return err
	}
	defer port.release()
	if err := writeCredentials(config.Dir, port.number); err != nil {
		return err
	}
	for _, component := range servers(port.number) {
		if err := family.start(component.name, component.args); err != nil {
			return err
		}
	}
	client, err := adminClient(config.Dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), config.StartTimeout)
	defer cancel()
	serves, ready := make(chan error, 1), make(chan error, 1)
	go func() { serves <- waitUntilServing(ctx, client, port.number) }()
	for {
		select {
		case <-stop:
			return nil
		case err := <-family.exits:
			return err
		case err := <-serves:
			if err != nil {
				return err
			}
			manager := controllerManager()
			if err := family.start(manager.name, manager.args); err != nil {
				return err
			}
			go func() { ready <- waitUntilReady(ctx, client, port.number) }()
		case err := <-ready:
			if err != nil {
				return err
			}
			if err := announce(config, port.number, time.Since(started)); err != nil {
				return err
			}
		}
	}
}

// stopRequests is closed at the first signal to end, or when standard input is
// closed if that was asked for.
func stopRequests(exitWithStdin bool) <-chan struct{} {
	stop := make(chan struct{}, 2)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		stop <- struct{}{}
	}()
	if exitWithStdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop <- struct{}{}
		}()
	}
	return stop
}

// makeDir makes config.Dir absolute and sees that it is there and empty: it will
// be removed with all it holds.
func makeDir(config *Config) error {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return err
	}
	config.Dir = dir
	if config.ReadyFile != "" {
		if config.ReadyFile, err = filepath.Abs(config.ReadyFile); err != nil {
			return err
		}
		if err := os.Remove(config.ReadyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty; give a directory that can be removed afterwards", dir)
	}
	return nil
}
