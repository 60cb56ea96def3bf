package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"
)

// A Proof is one wrapping algorithm as the self-test found it.
type Proof struct {
	Algorithm string // in KMS's words
	OK        bool
	Outcome   string // for a person
}

// testKey is the RSA key under which throwaway keys are wrapped. Making one
// takes a tenth of a second of a core.
var testKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// proven returns the wrapping algorithm that works in this connection, having
// found it out if that is not done yet.
//
// Neither a mechanism list nor CKR_OK is believed: there are tokens that list
// OAEP and can do it with SHA-1 only, and there are some that wrap with another
// hash than they are told and report success. KMS would refuse such a blob at
// best.
func (s *session) proven() (string, error) {
	t := s.t
	t.mu.Lock()
	algorithm := s.conn.algorithm
	t.mu.Unlock()
	if algorithm != "" {
		return algorithm, nil
	}
	candidates := preference
	if t.cfg.Wrapping != auto {
		candidates = []string{t.cfg.Wrapping}
	}
	var (
		proofs   []Proof
		doubtful error
	)
	for _, candidate := range candidates {
		err := s.prove(candidate)
		if isDoubtful(err) {
			if err = s.prove(candidate); isDoubtful(err) {
				doubtful = err
			}
		}
		if err != nil && !isOutcome(err) && !isDoubtful(err) {
			return "", fmt.Errorf("self-test of %s: %w", candidate, err)
		}
		if err == nil {
			proofs = append(proofs, Proof{candidate, true, "a throwaway key was wrapped in the token and opened outside"})
			algorithm = candidate
			break
		}
		proofs = append(proofs, Proof{candidate, false, err.Error()})
	}
	t.mu.Lock()
	s.conn.algorithm = algorithm
	t.info.Algorithm = algorithm
	t.info.Proofs = proofs
	t.mu.Unlock()
	if algorithm == "" && doubtful != nil {
		return "", fmt.Errorf("self-test: %w", doubtful)
	}
	if algorithm == "" {
		var tried []string
		for _, p := range proofs {
			tried = append(tried, p.Algorithm+": "+p.Outcome)
		}
		return "", fmt.Errorf("%w of [hsm.%s]: %s: %s", ErrNoAlgorithm, t.cfg.Name, strings.Join(tried, "; "), t.advice())
	}
	if len(proofs) > 1 {
		t.cfg.Logger.Info("hsm wraps with a second choice", "algorithm", algorithm, "first", proofs[0].Algorithm, "err", proofs[0].Outcome)
	}
	return algorithm, nil
}

func (t *Token) advice() string {
	if t.cfg.Wrapping != auto {
		return fmt.Sprintf(`set [hsm.%s] wrapping = "auto", or use a token that can do it`, t.cfg.Name)
	}
	return "use a token or a firmware that can wrap AES keys under RSA keys"
}

// An outcome is a self-test's answer no, as opposed to an error on the way.
type outcome struct{ err error }

func (o *outcome) Error() string { return o.err.Error() }
func (o *outcome) Unwrap() error { return o.err }

// isOutcome reports whether an error means that the token cannot do what was
// tried, so that the next algorithm's turn has come.
func isOutcome(err error) bool {
	if _, ok := errors.AsType[*outcome](err); ok {
		return true
	}
	switch _, code := codeOf(err); code {
	case pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID,
		pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_FUNCTION_REJECTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT,
		pkcs11.CKR_KEY_NOT_WRAPPABLE, pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED,
		pkcs11.CKR_KEY_SIZE_RANGE, pkcs11.CKR_WRAPPING_KEY_SIZE_RANGE, pkcs11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE, pkcs11.CKR_BUFFER_TOO_SMALL,
		pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
		pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT:
		return true
	}
	return false
}

// isDoubtful reports whether an error of C_WrapKey may be the module's way of
// saying that it cannot do what was tried, or may be trouble with the token.
func isDoubtful(err error) bool {
	op, code := codeOf(err)
	return op == "C_WrapKey" && (code == pkcs11.CKR_GENERAL_ERROR || code == pkcs11.CKR_FUNCTION_FAILED)
}

// prove wraps a throwaway key in the token, opens it here, and has the token
// show by encrypting that it is the same key.
func (s *session) prove(candidate string) error {
	private, err := testKey()
	if err != nil {
		return err
	}
	key, err := s.throwaway(s.t.cfg.KeyTemplate)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	wrapped, err := s.wrapUnder(&private.PublicKey, candidate, key)
	if err != nil {
		return err
	}
	opened, err := rsa.DecryptOAEP(algorithms[candidate].hash.New(), nil, private, wrapped, nil)
	if err != nil {
		return &outcome{errors.New("C_WrapKey: CKR_OK, but the token did not use this algorithm: what it made does not open")}
	}
	defer clear(opened)
	if len(opened) != keyBytes {
		return &outcome{fmt.Errorf("C_WrapKey: CKR_OK, but %d bytes were wrapped, not %d", len(opened), keyBytes)}
	}
	block := make([]byte, aes.BlockSize)
	rand.Read(block)
	got, err := s.encryptBlock(key, block)
	if err != nil {
		return err
	}
	cipher, err := aes.NewCipher(opened)
	if err != nil {
		return err
	}
	want := make([]byte, aes.BlockSize)
	cipher.Encrypt(want, block)
	if !bytes.Equal(got, want) {
		return &outcome{errors.New("C_WrapKey: CKR_OK, but another key was wrapped than the one asked for")}
	}
	return nil
}

// throwaway makes an AES-256 session key.
func (s *session) throwaway(overrides map[string]any) (pkcs11.ObjectHandle, error) {
	template, err := throwawayTemplate(overrides)
	if err != nil {
		return 0, err
	}
	return s.generate(template)
}

// encryptBlock encrypts one block with AES as such: as ECB, or as CBC with a
// zero initialisation vector, which is the same for one block.
func (s *session) encryptBlock(key pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	got, err := s.encrypt(pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil), key, block)
	if err != nil && isOutcome(err) {
		if got, e := s.encrypt(pkcs11.NewMechanism(pkcs11.CKM_AES_CBC, make([]byte, aes.BlockSize)), key, block); e == nil {
			return got, nil
		}
	}
	return got, err
}
