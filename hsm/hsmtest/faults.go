package hsmtest

import (
	"sync"

	"github.com/miekg/pkcs11"

	"byokd/hsm"
)

// Faults stands between an hsm.Modules and its modules:
//
//	faults := hsmtest.NewFaults()
//	modules := hsm.NewModules(log, hsm.WithLibrary(faults.Wrap))
//
// Each call of a PKCS#11 function goes through the hook, if there is one.
type Faults struct {
	mu    sync.Mutex
	hook  Hook
	calls map[string]int
	lying bool
	libs  []hsm.Library
}

// A Hook decides the fate of a call: op is the function's name, like
// C_WrapKey, and n counts its calls from 1. If apply is true, the token gets
// the call. If code is not CKR_OK, that is the answer whatever the token said.
// A Hook may block.
type Hook func(op string, n int) (apply bool, code uint)

// NewFaults returns a Faults that lets all calls through.
func NewFaults() *Faults { return &Faults{calls: make(map[string]int)} }

// Wrap puts the faults in front of a library.
func (f *Faults) Wrap(lib hsm.Library) hsm.Library {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.libs = append(f.libs, lib)
	return &faulty{lib, f}
}

// Set sets the hook; nil: none.
func (f *Faults) Set(hook Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Fail answers the next times calls of op with code, which the token does not get.
func (f *Faults) Fail(op string, code uint, times int) { f.fail(op, code, times, false) }

// Lose answers the next times calls of op with code after the token has done
// what was asked.
func (f *Faults) Lose(op string, code uint, times int) { f.fail(op, code, times, true) }

func (f *Faults) fail(op string, code uint, times int, apply bool) {
	first := f.Calls(op) + 1
	f.Set(func(o string, n int) (bool, uint) {
		if o == op && n >= first && n < first+times {
			return apply, code
		}
		return true, pkcs11.CKR_OK
	})
}

// Hang makes the next call of op hang until release is called; the token does
// not get it. The channel is closed when the call has come. A module that an hsm.Modules has given up for a hanging call
// stays initialised: call [Faults.Finalize] after release.
func (f *Faults) Hang(op string) (hanging <-chan struct{}, release func()) {
	come, released := make(chan struct{}), make(chan struct{})
	first := f.Calls(op) + 1
	f.Set(func(o string, n int) (bool, uint) {
		if o == op && n == first {
			close(come)
			<-released
			return false, pkcs11.CKR_FUNCTION_CANCELED
		}
		return true, pkcs11.CKR_OK
	})
	return come, sync.OnceFunc(func() { close(released) })
}

// Lie makes the token wrap with OAEP and SHA-1, whatever hash it is told, and
// report success.
func (f *Faults) Lie() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lying = true
}

// Calls returns how often op was called.
func (f *Faults) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Total returns how many calls there were.
func (f *Faults) Total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, calls := range f.calls {
		n += calls
	}
	return n
}

// Finalize finalizes the libraries behind the faults, past the hsm.Modules that
// has given them up.
func (f *Faults) Finalize() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, lib := range f.libs {
		lib.Finalize()
	}
}

// before counts a call and asks the hook.
func (f *Faults) before(op string) (apply bool, code uint) {
	f.mu.Lock()
	f.calls[op]++
	n, hook := f.calls[op], f.hook
	f.mu.Unlock()
	if hook == nil {
		return true, pkcs11.CKR_OK
	}
	return hook(op, n)
}

// faulty is a library with faults in front of it.
type faulty struct {
	lib hsm.Library
	f   *Faults
}

// through makes a call as the hook decides.
func through[T any](l *faulty, op string, call func() (T, error)) (v T, err error) {
	apply, code := l.f.before(op)
	if apply {
		v, err = call()
	}
	if code != pkcs11.CKR_OK {
		var zero T
		return zero, pkcs11.Error(code)
	}
	return v, err
}

func (l *faulty) do(op string, call func() error) error {
	_, err := through(l, op, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

func (l *faulty) Initialize(opts ...pkcs11.InitializeOption) error {
	return l.do("C_Initialize", func() error { return l.lib.Initialize(opts...) })
}

func (l *faulty) Finalize() error { return l.do("C_Finalize", l.lib.Finalize) }

func (l *faulty) GetInfo() (pkcs11.Info, error) { return through(l, "C_GetInfo", l.lib.GetInfo) }

func (l *faulty) GetSlotList(tokenPresent bool) ([]uint, error) {
	return through(l, "C_GetSlotList", func() ([]uint, error) { return l.lib.GetSlotList(tokenPresent) })
}

func (l *faulty) GetTokenInfo(slotID uint) (pkcs11.TokenInfo, error) {
	return through(l, "C_GetTokenInfo", func() (pkcs11.TokenInfo, error) { return l.lib.GetTokenInfo(slotID) })
}

func (l *faulty) OpenSession(slotID uint, flags uint) (pkcs11.SessionHandle, error) {
	return through(l, "C_OpenSession", func() (pkcs11.SessionHandle, error) { return l.lib.OpenSession(slotID, flags) })
}

func (l *faulty) CloseSession(sh pkcs11.SessionHandle) error {
	return l.do("C_CloseSession", func() error { return l.lib.CloseSession(sh) })
}

func (l *faulty) Login(sh pkcs11.SessionHandle, userType uint, pin string) error {
	return l.do("C_Login", func() error { return l.lib.Login(sh, userType, pin) })
}

func (l *faulty) Logout(sh pkcs11.SessionHandle) error {
	return l.do("C_Logout", func() error { return l.lib.Logout(sh) })
}

func (l *faulty) GenerateKey(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, temp []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return through(l, "C_GenerateKey", func() (pkcs11.ObjectHandle, error) { return l.lib.GenerateKey(sh, m, temp) })
}

func (l *faulty) CreateObject(sh pkcs11.SessionHandle, temp []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return through(l, "C_CreateObject", func() (pkcs11.ObjectHandle, error) { return l.lib.CreateObject(sh, temp) })
}

func (l *faulty) DestroyObject(sh pkcs11.SessionHandle, oh pkcs11.ObjectHandle) error {
	return l.do("C_DestroyObject", func() error { return l.lib.DestroyObject(sh, oh) })
}

func (l *faulty) GetAttributeValue(sh pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	return through(l, "C_GetAttributeValue", func() ([]*pkcs11.Attribute, error) { return l.lib.GetAttributeValue(sh, o, a) })
}

func (l *faulty) FindObjectsInit(sh pkcs11.SessionHandle, temp []*pkcs11.Attribute) error {
	return l.do("C_FindObjectsInit", func() error { return l.lib.FindObjectsInit(sh, temp) })
}

func (l *faulty) FindObjects(sh pkcs11.SessionHandle, max int) ([]pkcs11.ObjectHandle, bool, error) {
	found, err := through(l, "C_FindObjects", func() ([]pkcs11.ObjectHandle, error) {
		found, _, err := l.lib.FindObjects(sh, max)
		return found, err
	})
	return found, false, err
}

func (l *faulty) FindObjectsFinal(sh pkcs11.SessionHandle) error {
	return l.do("C_FindObjectsFinal", func() error { return l.lib.FindObjectsFinal(sh) })
}

func (l *faulty) WrapKey(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, wrappingkey, key pkcs11.ObjectHandle) ([]byte, error) {
	l.f.mu.Lock()
	lying := l.f.lying
	l.f.mu.Unlock()
	if lying {
		params := pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil)
		m = []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, params)}
	}
	return through(l, "C_WrapKey", func() ([]byte, error) { return l.lib.WrapKey(sh, m, wrappingkey, key) })
}

func (l *faulty) EncryptInit(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return l.do("C_EncryptInit", func() error { return l.lib.EncryptInit(sh, m, o) })
}

func (l *faulty) Encrypt(sh pkcs11.SessionHandle, message []byte) ([]byte, error) {
	return through(l, "C_Encrypt", func() ([]byte, error) { return l.lib.Encrypt(sh, message) })
}
