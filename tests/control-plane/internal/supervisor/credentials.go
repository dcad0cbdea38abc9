package supervisor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// lifetime of all certificates; a control plane lives for minutes.
const lifetime = 7 * 24 * time.Hour

// keyPair is a certificate with its key, both PEM.
type keyPair struct {
	certificate, key []byte
}

// authority signs the certificates of one control plane.
type authority struct {
	keyPair
	parsed *x509.Certificate
	signer *ecdsa.PrivateKey
}

// writeCredentials makes everything by which the components and their clients
// know one another, and writes it to dir.
func writeCredentials(dir string, port int) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	serving, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"localhost", "kubernetes.default.svc"},
	})
	if err != nil {
		return err
	}
	serviceAccountKey, err := newServiceAccountKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt":              ca.certificate,
		"serving.crt":         serving.certificate,
		"serving.key":         serving.key,
		"service-account.key": serviceAccountKey,
		auditPolicy:           auditPolicyText,
	}
	clients := map[string]pkix.Name{
		"admin":           {CommonName: "admin", Organization: []string{"system:masters"}},
		ControllerManager: {CommonName: "system:kube-controller-manager"},
	}
	for name, subject := range clients {
		client, err := ca.issue(&x509.Certificate{
			Subject:     subject,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			return err
		}
		files[name+".crt"], files[name+".key"] = client.certificate, client.key
		files[name+".kubeconfig"] = kubeconfig(serverURL(port), ca.certificate, client)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority() (*authority, error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "control-plane"},
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	limitLifetime(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{keyPair{certificate: encode("CERTIFICATE", der)}, parsed, signer}, nil
}

// issue signs a certificate for a new key; the template tells name and usage.
func (ca *authority) issue(template *x509.Certificate) (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return keyPair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	limitLifetime(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.parsed, key.Public(), ca.signer)
	if err != nil {
		return keyPair{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{encode("CERTIFICATE", der), encode("EC PRIVATE KEY", keyDER)}, nil
}

func newServiceAccountKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	return encode("EC PRIVATE KEY", der), err
}

// limitLifetime begins a little in the past, for clocks that are set back.
func limitLifetime(template *x509.Certificate) {
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = template.NotBefore.Add(lifetime)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// kubeconfig holds its credentials itself, so that it can be copied.
func kubeconfig(server string, ca []byte, client keyPair) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: control-plane
contexts:
- name: control-plane
  context: {cluster: control-plane, user: client}
clusters:
- name: control-plane
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: client
  user:
    client-certificate-data: %s
    client-key-data: %s
`, server, base64.StdEncoding.EncodeToString(ca),
		base64.StdEncoding.EncodeToString(client.certificate), base64.StdEncoding.EncodeToString(client.key))
}
