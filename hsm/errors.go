package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Sentinels for [errors.Is].
var (
	// ErrKeyNotFound: no object on the token has the key's CKA_ID.
	ErrKeyNotFound = errors.New("key not found on the token")
	// ErrKeyExists: an object with that CKA_ID is on the token already.
	ErrKeyExists = errors.New("a key with this CKA_ID is already on the token")
	// ErrTokenUnavailable: the token is absent, or does not answer, and
	// reconnecting did not help, or is not due yet.
	ErrTokenUnavailable = errors.New("token unavailable")
	// ErrPINIncorrect: the token refused the PIN.
	ErrPINIncorrect = errors.New("the token refused the PIN")
	// ErrLoginRefused is for [Logins]: Before wraps it to say that nothing may
	// log in until a person has acted.
	ErrLoginRefused = errors.New("not logging in")
	// ErrNoAlgorithm: no wrapping algorithm that KMS accepts for an AES key
	// has been proven on this token.
	ErrNoAlgorithm = errors.New("no wrapping algorithm proven on this token")
	// ErrClosed: the token or its [Modules] is closed.
	ErrClosed = errors.New("HSM closed")
)

// An Error is a PKCS#11 function that returned something other than CKR_OK. It
// unwraps to the code: errors.Is(err, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)).
type Error struct {
	Op   string // the function, e.g. C_WrapKey
	Code uint   // its CK_RV
}

func (e *Error) Error() string { return e.Op + ": " + e.Name() }

// Name returns the code's name, e.g. CKR_DEVICE_ERROR, or CKR_0x… where
// PKCS#11 has no name for it.
func (e *Error) Name() string { return name(e.Code) }

// Is says that CKR_PIN_INCORRECT is [ErrPINIncorrect].
func (e *Error) Is(target error) bool {
	return target == ErrPINIncorrect && e.Code == pkcs11.CKR_PIN_INCORRECT
}

// Unwrap returns the code as a [pkcs11.Error].
func (e *Error) Unwrap() error { return pkcs11.Error(e.Code) }

// opError says which function an error of the pkcs11 package came from.
func opError(op string, err error) error {
	if code, ok := errors.AsType[pkcs11.Error](err); ok {
		return &Error{Op: op, Code: uint(code)}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// codeOf returns the function and CK_RV behind an error; code 0 if there is none.
func codeOf(err error) (op string, code uint) {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Op, e.Code
	}
	return "", pkcs11.CKR_OK
}

// Class is what is known after an error, and so what to do next.
type Class string

// The classes of error.
const (
	Transient   Class = "transient"   // it did not happen; try again later
	Unknown     Class = "unknown"     // it may have happened; look, then go on
	Operator    Class = "operator"    // a person must act
	Permanent   Class = "permanent"   // it will never work
	Interrupted Class = "interrupted" // the context was cancelled, or the token closed
)

// What a person must mend, from [WaitingFor].
const (
	waitPIN    = "pin"
	waitConfig = "config"
)

// A fault is an error whose class is known where it arises.
type fault struct {
	class      Class
	waitingFor string
	err        error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// operator makes an error that a person must mend.
func operator(waitingFor, format string, args ...any) error {
	return &fault{Operator, waitingFor, fmt.Errorf(format, args...)}
}

// permanent makes an error that no further attempt will mend.
func permanent(format string, args ...any) error {
	return &fault{Permanent, "", fmt.Errorf(format, args...)}
}

// A hungError is a call that did not return in time.
type hungError struct {
	op     string // the function that hangs
	module string
	asked  bool // this caller's own call hangs; else it was refused for that
}

func (e *hungError) Error() string {
	return fmt.Sprintf("%v: %s in PKCS#11 module %s has not returned within call_timeout, and a call into a module cannot be cancelled: restart byokd",
		ErrTokenUnavailable, e.op, e.module)
}

func (e *hungError) Unwrap() error { return ErrTokenUnavailable }

// ClassOf returns the class of an error of this package; "" for nil.
func ClassOf(err error) Class {
	class, _ := classify(err)
	return class
}

// WaitingFor returns what a person must mend when [ClassOf] says Operator:
// "pin" or "config". Otherwise it returns "".
func WaitingFor(err error) string {
	_, waitingFor := classify(err)
	return waitingFor
}

func classify(err error) (class Class, waitingFor string) {
	if err == nil {
		return "", ""
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f.class, f.waitingFor
	}
	if h, ok := errors.AsType[*hungError](err); ok {
		if h.asked && changes(h.op) {
			return Unknown, ""
		}
		return Transient, ""
	}
	switch {
	case errors.Is(err, ErrKeyExists):
		return Permanent, ""
	case errors.Is(err, ErrKeyNotFound), errors.Is(err, ErrNoAlgorithm):
		return Operator, waitConfig
	case errors.Is(err, ErrLoginRefused), errors.Is(err, ErrPINIncorrect):
		return Operator, waitPIN
	}
	if op, code := codeOf(err); code != pkcs11.CKR_OK {
		return classOfCode(op, code)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		return Interrupted, ""
	}
	return Transient, ""
}
