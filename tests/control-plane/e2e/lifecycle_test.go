package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// One control plane serves the tests that do not end it.
func TestControlPlane(t *testing.T) {
	plane := start(t)

	t.Run("tells the version of the modules it is built from", func(t *testing.T) {
		module, err := os.ReadFile("../go.mod")
		must(t, err)
		_, body := plane.call(t, http.MethodGet, "/version", "", "")
		var version struct{ GitVersion, Major, Minor string }
		must(t, json.Unmarshal(body, &version))
		if !strings.Contains(string(module), "k8s.io/kubernetes "+version.GitVersion+"\n") {
			t.Errorf("the server says %s", version.GitVersion)
		}
		if !strings.HasPrefix(version.GitVersion, "v"+version.Major+"."+version.Minor+".") {
			t.Errorf("%s is not %s.%s", version.GitVersion, version.Major, version.Minor)
		}
	})

	t.Run("denies a service account what it was not granted", func(t *testing.T) {
		const secrets = "/api/v1/namespaces/default/secrets"
		token := plane.token(t)
		if status, body := plane.call(t, http.MethodGet, secrets, token, ""); status != http.StatusForbidden {
			t.Fatalf("ungranted: %d %s", status, body)
		}
		plane.create(t, "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", `{
			"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"granted"},
			"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"admin"},
			"subjects":[{"kind":"ServiceAccount","name":"default","namespace":"default"}]}`)
		eventually(t, "granted", func() bool {
			status, _ := plane.call(t, http.MethodGet, secrets, token, "")
			return status == http.StatusOK
		})
	})

	t.Run("logs a secret's write but never its content", func(t *testing.T) {
		const canary = "canary-4f1d"
		encoded := base64.StdEncoding.EncodeToString([]byte(canary))
		plane.create(t, "/api/v1/namespaces/default/secrets",
			fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"audited"},"data":{"key":%q}}`, encoded))
		if events := plane.auditEvents(t, `"name":"audited"`); len(events) != 1 {
			t.Errorf("%d events, not 1", len(events))
		}
		if events := plane.auditEvents(t, encoded); len(events) > 0 {
			t.Errorf("the content is logged: %s", events)
		}
	})

	t.Run("collects what its owner left", func(t *testing.T) {
		const configMaps = "/api/v1/namespaces/default/configmaps"
		owner := plane.create(t, configMaps, object("ConfigMap", "owner"))
		plane.create(t, configMaps, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"owned",
			"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":%q}]}}`,
			owner["metadata"].(map[string]any)["uid"]))
		plane.call(t, http.MethodDelete, configMaps+"/owner", "", "")
		eventually(t, "the owned ConfigMap goes", func() bool {
			status, _ := plane.call(t, http.MethodGet, configMaps+"/owned", "", "")
			return status == http.StatusNotFound
		})
	})

	t.Run("finishes the deletion of a namespace", func(t *testing.T) {
		plane.create(t, "/api/v1/namespaces", object("Namespace", "passing"))
		plane.call(t, http.MethodDelete, "/api/v1/namespaces/passing", "", "")
		eventually(t, "the namespace goes", func() bool {
			status, _ := plane.call(t, http.MethodGet, "/api/v1/namespaces/passing", "", "")
			return status == http.StatusNotFound
		})
	})

	t.Run("leaves nothing when its program is killed", func(t *testing.T) {
		must(t, plane.command.Process.Kill())
		plane.waitUntilNothingIsLeft(t)
		address := strings.TrimPrefix(plane.ready.Server, "https://")
		if connection, err := net.Dial("tcp", address); err == nil {
			connection.Close()
			t.Errorf("%s still answers", address)
		}
	})
}

func TestEndsWithItsStandardInput(t *testing.T) {
	plane := launch(t)
	eventually(t, "the components start", func() bool { return len(plane.processes(t)) > 3 })
	must(t, plane.stdin.Close())
	if err := plane.command.Wait(); err != nil {
		t.Errorf("%v: %s", err, plane.stderr.String())
	}
	if exists(plane.dir) || len(plane.processes(t)) > 0 {
		t.Error("something was left when the program ended")
	}
}

func TestEndsAtASignal(t *testing.T) {
	plane := launch(t)
	eventually(t, "the components start", func() bool { return len(plane.processes(t)) > 3 })
	must(t, plane.command.Process.Signal(syscall.SIGTERM))
	if err := plane.command.Wait(); err != nil {
		t.Errorf("%v: %s", err, plane.stderr.String())
	}
	if exists(plane.dir) || len(plane.processes(t)) > 0 {
		t.Error("something was left when the program ended")
	}
}

func TestEndsWithTheLastWordsOfAComponentThatDies(t *testing.T) {
	plane := launch(t)
	var etcd int
	eventually(t, "etcd starts", func() bool {
		for _, id := range plane.processes(t) {
			arguments, _ := os.ReadFile(filepath.Join("/proc", id, "cmdline"))
			if strings.Contains(string(arguments), "\x00etcd\x00") {
				etcd, _ = strconv.Atoi(id)
			}
		}
		return etcd != 0
	})
	must(t, syscall.Kill(etcd, syscall.SIGKILL))
	if err := plane.command.Wait(); err == nil {
		t.Error("ended as if all were well")
	}
	if !strings.Contains(plane.stderr.String(), "etcd ended by itself (signal: killed)") {
		t.Errorf("said: %s", plane.stderr.String())
	}
}

func TestRefusesADirectoryThatHoldsSomething(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	must(t, os.WriteFile(precious, nil, 0o600))
	output, err := exec.Command(program(t), "run", "--dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "is not empty") {
		t.Errorf("%v: %s", err, output)
	}
	if !exists(precious) {
		t.Error("it is gone")
	}
}
