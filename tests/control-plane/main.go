// Control-plane runs a real Kubernetes control plane for tests: etcd,
// kube-apiserver and kube-controller-manager, with all they need under one
// directory.
//
// Each component keeps its flags and feature gates in globals of its process,
// so `run` starts this program again for each of them and supervises the
// children.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"

	"agentfleet.dev/tests/control-plane/internal/supervisor"
)

const usage = `usage: control-plane run --dir DIR [--ready-file FILE] [--exit-with-stdin] [--keep] [--start-timeout 2m]
       control-plane version

Started by run: control-plane etcd | kube-apiserver | kube-controller-manager
`

// The kernel ends a child when the thread that started it ends; the main
// thread is the one that lives as long as the process.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := dispatch(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "control-plane:", err)
		os.Exit(1)
	}
}

func dispatch(command string, args []string) error {
	switch command {
	case "run":
		return run(args)
	case "version":
		version, err := kubernetesVersion()
		if err == nil {
			fmt.Println(version)
		}
		return err
	case supervisor.Etcd, supervisor.APIServer, supervisor.ControllerManager:
		supervisor.DieWithParent()
		return runComponent(command, args)
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
}

func run(args []string) error {
	var config supervisor.Config
	flags := flag.NewFlagSet("run", flag.ExitOnError)
	flags.StringVar(&config.Dir, "dir", "", "the directory that holds everything; made here, removed at the end")
	flags.StringVar(&config.ReadyFile, "ready-file", "", "written once all is ready: JSON with kubeconfig, server and auditLog")
	flags.BoolVar(&config.ExitWithStdin, "exit-with-stdin", false, "end when standard input is closed")
	flags.BoolVar(&config.Keep, "keep", false, "leave the directory when ending, to look at logs")
	flags.DurationVar(&config.StartTimeout, "start-timeout", 2*time.Minute, "give up when not ready by then")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if config.Dir == "" || flags.NArg() > 0 {
		return fmt.Errorf("run needs --dir and takes no arguments")
	}
	if _, err := kubernetesVersion(); err != nil {
		return err
	}
	return supervisor.Run(config)
}
