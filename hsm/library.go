package hsm

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

// dlerror answers per thread, so both calls must be made in one.
static char *why_not(const char *path) {
	void *h = dlopen(path, RTLD_LAZY);
	if (h == NULL) {
		const char *e = dlerror();
		return strdup(e != NULL ? e : "dlopen failed");
	}
	if (dlsym(h, "C_GetFunctionList") == NULL)
		return strdup("it has no C_GetFunctionList, so it is no PKCS#11 module");
	return NULL;
}
*/
import "C"

import (
	"errors"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// A Library is the part of [pkcs11.Ctx] that this package uses. Tests put
// faults in front of a real one; see [WithLibrary].
type Library interface {
	Initialize(opts ...pkcs11.InitializeOption) error
	Finalize() error
	GetInfo() (pkcs11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slotID uint) (pkcs11.TokenInfo, error)

	OpenSession(slotID uint, flags uint) (pkcs11.SessionHandle, error)
	CloseSession(sh pkcs11.SessionHandle) error
	Login(sh pkcs11.SessionHandle, userType uint, pin string) error
	Logout(sh pkcs11.SessionHandle) error

	GenerateKey(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, temp []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	CreateObject(sh pkcs11.SessionHandle, temp []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	DestroyObject(sh pkcs11.SessionHandle, oh pkcs11.ObjectHandle) error
	GetAttributeValue(sh pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	FindObjectsInit(sh pkcs11.SessionHandle, temp []*pkcs11.Attribute) error
	FindObjects(sh pkcs11.SessionHandle, max int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(sh pkcs11.SessionHandle) error
	WrapKey(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, wrappingkey, key pkcs11.ObjectHandle) ([]byte, error)
	EncryptInit(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error
	Encrypt(sh pkcs11.SessionHandle, message []byte) ([]byte, error)
}

// openLibrary maps a module into the process. It stays there: unloading gains
// nothing, and threads that the module started may still be inside.
func openLibrary(path string) (Library, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	// pkcs11.New gives nil without a reason.
	if why := C.why_not(p); why != nil {
		defer C.free(unsafe.Pointer(why))
		return nil, errors.New(C.GoString(why))
	}
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, errors.New("it cannot be loaded")
	}
	return ctx, nil
}

// reservedOption passes C_Initialize's pReserved. The C string is never freed:
// a module may keep the pointer for as long as it is loaded.
func reservedOption(s string) pkcs11.InitializeOption {
	return pkcs11.InitializeWithReserved(unsafe.Pointer(C.CString(s)))
}
