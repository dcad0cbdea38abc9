package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

const operatorNamespace = "agentfleet-system"

// install renders the chart as users do and applies it; it returns the
// operator's user name.
func install(t *testing.T, plane *controlPlane) string {
	t.Helper()
	plane.create(t, "/api/v1/namespaces", object("Namespace", operatorNamespace))
	helm := exec.Command("../../../target/helm/helm", "template", "agentfleet", "../../../charts/agentfleet",
		"--namespace", operatorNamespace, "--include-crds")
	manifests, err := helm.Output()
	if err != nil {
		t.Fatalf("helm (built by `make helm`): %v", err)
	}
	kubectl := exec.Command("kubectl", "--kubeconfig", plane.ready.Kubeconfig, "apply", "--server-side", "--filename", "-")
	kubectl.Stdin = strings.NewReader(string(manifests))
	if output, err := kubectl.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return "system:serviceaccount:" + operatorNamespace + ":agentfleet"
}

// may asks the API server whether the user is allowed to: "verb group/resource
// namespace", where "-" means all namespaces.
func (p *controlPlane) may(t *testing.T, user, what string) bool {
	t.Helper()
	words := strings.Fields(what)
	group, resource, _ := strings.Cut(words[1], "/")
	resource, subresource, _ := strings.Cut(resource, "/")
	answer := p.create(t, "/apis/authorization.k8s.io/v1/subjectaccessreviews", fmt.Sprintf(`{
		"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":%q,"resourceAttributes":
		{"verb":%q,"group":%q,"resource":%q,"subresource":%q,"namespace":%q}}}`,
		user, words[0], group, resource, subresource, strings.TrimPrefix(words[2], "-")))
	return answer["status"].(map[string]any)["allowed"].(bool)
}

func TestTheChartGrantsTheOperatorWhatItNeedsAndNoMore(t *testing.T) {
	plane := start(t)
	operator := install(t, plane)

	for _, needed := range []string{
		"watch agentfleet.dev/hetznerprojects -",
		"watch agentfleet.dev/agentclasses -",
		"watch agentfleet.dev/agentinstances -",
		"patch agentfleet.dev/agentinstances tenant",
		"create agentfleet.dev/agentinstances tenant",
		"delete agentfleet.dev/agentinstances tenant",
		"patch agentfleet.dev/agentinstances/status tenant",
		"watch agentfleet.dev/subscriptions -",
		"patch agentfleet.dev/subscriptions/status tenant",
		"watch /secrets -",
		"patch /secrets tenant",
		"create /secrets agentfleet-system",
		"watch /namespaces -",
		"create events.k8s.io/events tenant",
		"update coordination.k8s.io/leases agentfleet-system",
		"create apps/controllerrevisions agentfleet-system",
	} {
		// An API server acts on rights some time after they were written.
		eventually(t, "allowed: "+needed, func() bool { return plane.may(t, operator, needed) })
	}
	for _, dangerous := range []string{
		"create agentfleet.dev/subscriptions tenant",
		"delete agentfleet.dev/subscriptions tenant",
		"administer agentfleet.dev/agentinstances tenant",
		"create /secrets tenant",
		"delete /secrets agentfleet-system",
		"update coordination.k8s.io/leases kube-system",
		"create /pods agentfleet-system",
		"create /serviceaccounts/token agentfleet-system",
		"patch rbac.authorization.k8s.io/clusterroles -",
		"impersonate /users -",
	} {
		if plane.may(t, operator, dangerous) {
			t.Errorf("allowed: %s", dangerous)
		}
	}

	t.Run("and no rule has a wildcard", func(t *testing.T) {
		for _, path := range []string{"clusterroles/agentfleet", "clusterroles/agentfleet-admin", "clusterroles/agentfleet-billing", "clusterroles/agentfleet-onboarding", "clusterroles/agentfleet-viewer", "namespaces/" + operatorNamespace + "/roles/agentfleet"} {
			status, body := plane.call(t, http.MethodGet, "/apis/rbac.authorization.k8s.io/v1/"+path, "", "")
			var role struct{ Rules []json.RawMessage }
			must(t, json.Unmarshal(body, &role))
			if status != http.StatusOK || len(role.Rules) == 0 {
				t.Errorf("%s: %d %s", path, status, body)
			}
			for _, rule := range role.Rules {
				if strings.Contains(string(rule), `"*"`) {
					t.Errorf("%s: %s", path, rule)
				}
			}
		}
	})

	t.Run("and the types in its admission policy are right", func(t *testing.T) {
		var policy struct {
			Status struct {
				TypeChecking *struct{ ExpressionWarnings []any }
			}
		}
		eventually(t, "the policy is checked", func() bool {
			_, body := plane.call(t, http.MethodGet,
				"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/agentfleet-admin-annotations", "", "")
			return json.Unmarshal(body, &policy) == nil && policy.Status.TypeChecking != nil
		})
		if warnings := policy.Status.TypeChecking.ExpressionWarnings; len(warnings) > 0 {
			t.Error(warnings)
		}
	})
}
