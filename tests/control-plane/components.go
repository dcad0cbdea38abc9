package main

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"

	"agentfleet.dev/tests/control-plane/internal/supervisor"
)

// runComponent is one Kubernetes component with its ordinary flags.
func runComponent(name string, args []string) error {
	if name == supervisor.Etcd {
		return runEtcd(args)
	}
	var command *cobra.Command
	if name == supervisor.APIServer {
		command = apiserver.NewAPIServerCommand()
	} else {
		command = controllermanager.NewControllerManagerCommand()
	}
	command.SetArgs(args)
	return cli.RunNoErrOutput(command)
}

// kubernetesVersion is what the API server will call itself. It fails when that
// is not the version of the Kubernetes module in this binary: the linker is told
// the version, so a plain `go build` would make a server that kubectl and Helm
// cannot place.
func kubernetesVersion() (string, error) {
	told := version.Get().GitVersion
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return "", fmt.Errorf("this program has no build information")
	}
	for _, module := range build.Deps {
		if module.Path == "k8s.io/kubernetes" && module.Version != told {
			return "", fmt.Errorf("built as %s from Kubernetes %s; build it with `make control-plane`",
				strings.SplitN(told, "+", 2)[0], module.Version)
		}
	}
	return told, nil
}
