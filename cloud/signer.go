package cloud

import (
	"context"
	"crypto/sha256"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// A signer signs requests with Signature Version 4. The SDK's own signer keeps
// the keys that it has derived by access key ID, and would sign with an old
// secret for the rest of the day where only the secret was corrected.
type signer struct {
	mu     sync.Mutex
	secret [sha256.Size]byte // hash of the one that signer has derived keys from
	signer *v4.Signer
}

// SignHTTP signs a request.
func (s *signer) SignHTTP(ctx context.Context, credentials aws.Credentials, r *http.Request, payloadHash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	secret := sha256.Sum256([]byte(credentials.SecretAccessKey))
	s.mu.Lock()
	if s.signer == nil || s.secret != secret {
		s.secret, s.signer = secret, v4.NewSigner()
	}
	current := s.signer
	s.mu.Unlock()
	return current.SignHTTP(ctx, credentials, r, payloadHash, service, region, at, options...)
}
