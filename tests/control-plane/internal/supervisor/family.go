package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// sweep is the janitor: it waits until the family is gone, which closes its
// standard input, and removes what it left. A shell does it in a hundredth of the
// memory that this program would take.
const sweep = `trap '' HUP INT TERM; cat; exec rm -rf -- "$@"`

// family is the processes of one control plane.
type family struct {
	dir     string
	program string
	// exits tells of each component that ended, and why.
	exits chan error
	// lifeline is the components' standard input; only the supervisor holds the
	// writing end.
	lifeline, lifelineEnd *os.File
	// mourning is the writing end of the janitor's standard input; whoever lives
	// holds it.
	mourning *os.File
	janitor  *exec.Cmd
	children []*exec.Cmd
}

// newFamily starts the janitor, so that from here on nothing is left behind.
func newFamily(config Config) (*family, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	lifeline, lifelineEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	leftovers := []string{config.Dir}
	if config.Keep {
		leftovers = nil
	}
	if config.ReadyFile != "" {
		leftovers = append(leftovers, config.ReadyFile)
	}
	janitorStdin, mourning, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer janitorStdin.Close()

	janitor := exec.Command("/bin/sh", append([]string{"-c", sweep, "janitor"}, leftovers...)...)
	janitor.Stdin = janitorStdin
	janitor.Stderr = os.Stderr
	// A session of its own: what ends the supervisor's group must not end it.
	janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := janitor.Start(); err != nil {
		return nil, err
	}
	return &family{
		dir:         config.Dir,
		program:     program,
		exits:       make(chan error, 8),
		lifeline:    lifeline,
		lifelineEnd: lifelineEnd,
		mourning:    mourning,
		janitor:     janitor,
	}, nil
}

// start runs this program again as the named component, in the family's
// directory and with a log file there.
func (f *family) start(name string, args []string) error {
	logPath := filepath.Join(f.dir, name+".log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()

	child := exec.Command(f.program, append([]string{name}, args...)...)
	child.Dir = f.dir
	// Processor time is scarcer than memory where tests share the machine.
	child.Env = append(os.Environ(), "GOGC=200")
	child.Stdin = f.lifeline
	child.Stdout, child.Stderr = log, log
	child.ExtraFiles = []*os.File{f.mourning}
	// A group of its own: Ctrl-C is for the supervisor, which ends the children.
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f.children = append(f.children, child)
	go func() {
		err := child.Wait()
		f.exits <- fmt.Errorf("%s ended by itself (%v); its last words:\n%s", name, err, lastWords(logPath))
	}()
	return nil
}

// end kills the components (there is nothing to be saved, and kube-apiserver
// takes ten seconds to end by itself) and waits until the janitor has swept.
func (f *family) end() error {
	var errs []error
	for _, child := range f.children {
		if err := child.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	f.lifelineEnd.Close()
	f.mourning.Close()
	return errors.Join(append(errs, f.janitor.Wait())...)
}

// DieWithParent ends this process when the supervisor is gone, also where the
// kernel's own signal came too early: before it was asked for.
func DieWithParent() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}()
}

// lastWords is the end of a log file, which will soon be gone.
func lastWords(path string) string {
	log, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}
