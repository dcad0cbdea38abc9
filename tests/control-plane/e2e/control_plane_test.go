// Package e2e tests the built program from outside: what it serves, and
// what it leaves behind.
package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait; it is only ever used up by a failure.
const patience = 2 * time.Minute

// controlPlane is one running program.
type controlPlane struct {
	command *exec.Cmd
	stdin   io.Closer
	stderr  bytes.Buffer
	dir     string
	ready   struct{ Kubeconfig, Server, AuditLog string }
	admin   *http.Client
}

func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CONTROL_PLANE")
	if path == "" {
		path = "../../../target/control-plane/control-plane"
	}
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("build the program first, with `make control-plane`: %v", err)
	}
	return path
}

// launch starts a control plane without waiting until it is ready. It is killed
// when the test ends, if it still runs.
func launch(t *testing.T, args ...string) *controlPlane {
	t.Helper()
	plane := &controlPlane{dir: filepath.Join(t.TempDir(), "plane")}
	plane.command = exec.Command(program(t), append([]string{
		"run", "--dir", plane.dir, "--ready-file", plane.readyFile(), "--exit-with-stdin",
	}, args...)...)
	plane.command.Stderr = &plane.stderr
	stdin, err := plane.command.StdinPipe()
	must(t, err)
	plane.stdin = stdin
	must(t, plane.command.Start())
	t.Cleanup(func() {
		_ = plane.command.Process.Kill()
		_ = plane.command.Wait()
		plane.waitUntilNothingIsLeft(t)
	})
	return plane
}

// start waits until the control plane is ready.
func start(t *testing.T, args ...string) *controlPlane {
	t.Helper()
	plane := launch(t, args...)
	eventually(t, "the ready file appears", func() bool {
		content, err := os.ReadFile(plane.readyFile())
		return err == nil && json.Unmarshal(content, &plane.ready) == nil
	})
	certificate, err := tls.LoadX509KeyPair(filepath.Join(plane.dir, "admin.crt"), filepath.Join(plane.dir, "admin.key"))
	must(t, err)
	ca, err := os.ReadFile(filepath.Join(plane.dir, "ca.crt"))
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	plane.admin = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}},
	}}
	return plane
}

func (p *controlPlane) readyFile() string { return p.dir + ".ready" }

// call returns status code and body; a token takes the place of the admin's
// certificate.
func (p *controlPlane) call(t *testing.T, method, path, token, body string) (int, []byte) {
	t.Helper()
	client := p.admin
	request, err := http.NewRequest(method, p.ready.Server+path, strings.NewReader(body))
	must(t, err)
	request.Header.Set("Content-Type", "application/json")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
		anonymous := p.admin.Transport.(*http.Transport).Clone()
		anonymous.TLSClientConfig.Certificates = nil
		client = &http.Client{Transport: anonymous}
	}
	response, err := client.Do(request)
	must(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, content
}

// create makes an object as the admin.
func (p *controlPlane) create(t *testing.T, path, body string) map[string]any {
	t.Helper()
	status, answer := p.call(t, http.MethodPost, path, "", body)
	if status != http.StatusCreated {
		t.Fatalf("POST %s: %d %s", path, status, answer)
	}
	var object map[string]any
	must(t, json.Unmarshal(answer, &object))
	return object
}

// token is one for the default ServiceAccount of the default namespace.
func (p *controlPlane) token(t *testing.T) string {
	t.Helper()
	answer := p.create(t, "/api/v1/namespaces/default/serviceaccounts/default/token",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`)
	return answer["status"].(map[string]any)["token"].(string)
}

// processes are the ids of all that run in the directory or were told of it.
func (p *controlPlane) processes(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	must(t, err)
	var found []string
	for _, link := range links {
		proc := filepath.Dir(link)
		cwd, _ := os.Readlink(link)
		arguments, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		if strings.HasPrefix(cwd, p.dir) || bytes.Contains(arguments, []byte(p.dir+"\x00")) {
			found = append(found, filepath.Base(proc))
		}
	}
	return found
}

func (p *controlPlane) waitUntilNothingIsLeft(t *testing.T) {
	t.Helper()
	eventually(t, "no process and no file is left", func() bool {
		return len(p.processes(t)) == 0 && !exists(p.dir) && !exists(p.readyFile())
	})
}

// auditEvents are the lines of the audit log that contain the text.
func (p *controlPlane) auditEvents(t *testing.T, text string) []string {
	t.Helper()
	log, err := os.Open(p.ready.AuditLog)
	must(t, err)
	defer log.Close()
	var found []string
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			found = append(found, lines.Text())
		}
	}
	must(t, lines.Err())
	return found
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func object(kind, name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":%q,"metadata":{"name":%q}}`, kind, name)
}
