package supervisor

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
)

// Paths are relative to the family's directory, where the components run. They
// keep the Unix socket's path short too, which the kernel limits to 107 bytes.
const (
	auditLog    = "audit.log"
	auditPolicy = "audit-policy.yaml"
	etcdSocket  = "etcd.sock"
)

//go:embed audit-policy.yaml
var auditPolicyText []byte

// controllers are those that tests of an operator notice; without nodes the rest
// would only cost time.
var controllers = []string{
	"garbage-collector-controller",
	"namespace-controller",
	"serviceaccount-controller",
	// Fills the roles admin, edit and view.
	"clusterrole-aggregation-controller",
	// Checks the types in ValidatingAdmissionPolicies.
	"validatingadmissionpolicy-status-controller",
}

type component struct {
	name string
	args []string
}

// servers are etcd and the API server. They start at once: the second waits for
// the first by itself.
func servers(port int) []component {
	return []component{
		{Etcd, []string{"--data-dir=etcd", "--socket=" + etcdSocket}},
		{APIServer, apiServerArgs(port)},
	}
}

// controllerManager starts when the API server is ready: without RBAC's roles it
// is refused, and gives up after ten seconds.
func controllerManager() component {
	return component{ControllerManager, []string{
		"--kubeconfig=" + ControllerManager + ".kubeconfig",
		"--controllers=" + strings.Join(controllers, ","),
		// Each controller acts under an account of its own, as in a real cluster,
		// and so the audit log tells them apart.
		"--use-service-account-credentials",
		"--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=200",
		"--kube-api-burst=400",
	}}
}

func apiServerArgs(port int) []string {
	return []string{
		"--etcd-servers=unix://" + etcdSocket,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--permit-port-sharing",
		"--tls-cert-file=serving.crt",
		"--tls-private-key-file=serving.key",
		"--client-ca-file=ca.crt",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=service-account.key",
		"--service-account-signing-key-file=service-account.key",
		"--service-cluster-ip-range=10.96.0.0/24",
		"--endpoint-reconciler-type=none",
		"--authorization-mode=RBAC",
		"--audit-policy-file=" + auditPolicy,
		"--audit-log-path=" + auditLog,
		// A line is in the file before the client has its answer, and the file is
		// never rotated: tests read it as ground truth.
		"--audit-log-mode=blocking",
		"--audit-log-maxsize=0",
		"--profiling=false",
	}
}

func serverURL(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }
