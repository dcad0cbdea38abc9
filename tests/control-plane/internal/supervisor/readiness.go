package supervisor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// pollInterval is short since every test run waits for it.
const pollInterval = 50 * time.Millisecond

// ReadyFile is the content of the ready file.
type ReadyFile struct {
	// Kubeconfig is the path of the admin's kubeconfig.
	Kubeconfig string `json:"kubeconfig"`
	// Server is the URL of the API server.
	Server string `json:"server"`
	// AuditLog is the path of the audit log, one JSON event in each line.
	AuditLog string `json:"auditLog"`
}

// waitUntilServing returns when the API server says that it is ready, which
// includes RBAC's own roles.
func waitUntilServing(ctx context.Context, client *http.Client, port int) error {
	return waitForOK(ctx, client, serverURL(port)+"/readyz")
}

// waitUntilReady returns when an admin can work: the default namespace has its
// ServiceAccount, so that the controllers are at work too.
func waitUntilReady(ctx context.Context, client *http.Client, port int) error {
	for _, path := range []string{"/api/v1/namespaces/default", "/api/v1/namespaces/default/serviceaccounts/default"} {
		if err := waitForOK(ctx, client, serverURL(port)+path); err != nil {
			return err
		}
	}
	return nil
}

// waitForOK asks until the answer is 200; the last other answer is the error.
func waitForOK(ctx context.Context, client *http.Client, url string) error {
	for {
		answer := ask(ctx, client, url)
		if answer == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %w", answer)
		case <-time.After(pollInterval):
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return nil
}

func adminClient(dir string) (*http.Client, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin.crt"), filepath.Join(dir, "admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{
			RootCAs:      roots,
			Certificates: []tls.Certificate{certificate},
		}},
	}, nil
}

// announce tells that all is ready. The ready file appears whole or not at all.
func announce(config Config, port int, took time.Duration) error {
	fmt.Printf("ready in %d ms\n", took.Milliseconds())
	if config.ReadyFile == "" {
		return nil
	}
	content, err := json.Marshal(ReadyFile{
		Kubeconfig: filepath.Join(config.Dir, "admin.kubeconfig"),
		Server:     serverURL(port),
		AuditLog:   filepath.Join(config.Dir, auditLog),
	})
	if err != nil {
		return err
	}
	unfinished := config.ReadyFile + ".unfinished"
	if err := os.WriteFile(unfinished, append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, config.ReadyFile)
}
