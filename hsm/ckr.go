package hsm

import (
	"fmt"

	"github.com/miekg/pkcs11"
)

// name returns the CKR_ name of a return value, or CKR_0x… for a vendor's own.
func name(code uint) string {
	if n, ok := names[code]; ok {
		return n
	}
	return fmt.Sprintf("CKR_0x%X", code)
}

// changes reports whether a function changes objects on the token, so that an
// error of the device can mean that it happened all the same.
func changes(op string) bool { return op == "C_GenerateKey" || op == "C_DestroyObject" }

// classOfCode returns the class of a CK_RV from the function op.
func classOfCode(op string, code uint) (class Class, waitingFor string) {
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_TOO_WEAK, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return Operator, waitPIN
	case pkcs11.CKR_ARGUMENTS_BAD:
		switch op {
		case "C_Login": // SoftHSM, of an empty PIN
			return Operator, waitPIN
		case "C_Initialize": // of pReserved, wanted or not
			return Operator, waitConfig
		}
	case pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
		pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_KEY_NOT_WRAPPABLE, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_ACTION_PROHIBITED,
		pkcs11.CKR_TOKEN_WRITE_PROTECTED, pkcs11.CKR_FUNCTION_REJECTED:
		return Operator, waitConfig
	case pkcs11.CKR_KEY_UNEXTRACTABLE:
		return Permanent, ""
	}
	if changes(op) && rungOfCode(op, code) == rungModule {
		return Unknown, ""
	}
	return Transient, ""
}

// full reports whether a code says that the token or its host is full.
func full(code uint) bool {
	return code == pkcs11.CKR_DEVICE_MEMORY || code == pkcs11.CKR_HOST_MEMORY || code == ckrTokenResourceExceeded
}

// A rung is a means of recovery, the cheapest first.
type rung int

const (
	rungNone    rung = iota // nothing here helps
	rungSession             // a new session
	rungLogin               // a new login as well
	rungModule              // C_Finalize and C_Initialize before that
)

// String says what is done.
func (r rung) String() string {
	return [...]string{"nothing", "new session", "new login", "module initialised again"}[r]
}

// rungOfCode returns the first means of recovery that may help after a CK_RV.
func rungOfCode(op string, code uint) rung {
	switch code {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE,
		pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID:
		return rungSession
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return rungLogin
	case pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return rungModule
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED:
		// From C_Login it may be this module's way of refusing a PIN, which
		// must not be tried again at once.
		if op != "C_Login" {
			return rungModule
		}
	}
	return rungNone
}

// Return values of later versions of PKCS#11 for which the pkcs11 package has
// no constant: 2.40 section 4, 3.1 and 3.2 section 3.
const (
	ckrCopyProhibited        = 0x1A
	ckrAEADDecryptFailed     = 0x42
	ckrTokenResourceExceeded = 0x201
	ckrOperationCancelFailed = 0x202
	ckrKeyExhausted          = 0x203
)

// names holds the return values of PKCS#11 2.40, section 4, and of 3.x. The
// pkcs11 package prints the newer ones with an empty name.
var names = map[uint]string{
	pkcs11.CKR_OK:                               "CKR_OK",
	pkcs11.CKR_CANCEL:                           "CKR_CANCEL",
	pkcs11.CKR_HOST_MEMORY:                      "CKR_HOST_MEMORY",
	pkcs11.CKR_SLOT_ID_INVALID:                  "CKR_SLOT_ID_INVALID",
	pkcs11.CKR_GENERAL_ERROR:                    "CKR_GENERAL_ERROR",
	pkcs11.CKR_FUNCTION_FAILED:                  "CKR_FUNCTION_FAILED",
	pkcs11.CKR_ARGUMENTS_BAD:                    "CKR_ARGUMENTS_BAD",
	pkcs11.CKR_NO_EVENT:                         "CKR_NO_EVENT",
	pkcs11.CKR_NEED_TO_CREATE_THREADS:           "CKR_NEED_TO_CREATE_THREADS",
	pkcs11.CKR_CANT_LOCK:                        "CKR_CANT_LOCK",
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:              "CKR_ATTRIBUTE_READ_ONLY",
	pkcs11.CKR_ATTRIBUTE_SENSITIVE:              "CKR_ATTRIBUTE_SENSITIVE",
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:           "CKR_ATTRIBUTE_TYPE_INVALID",
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:          "CKR_ATTRIBUTE_VALUE_INVALID",
	pkcs11.CKR_DATA_INVALID:                     "CKR_DATA_INVALID",
	pkcs11.CKR_DATA_LEN_RANGE:                   "CKR_DATA_LEN_RANGE",
	pkcs11.CKR_DEVICE_ERROR:                     "CKR_DEVICE_ERROR",
	pkcs11.CKR_DEVICE_MEMORY:                    "CKR_DEVICE_MEMORY",
	pkcs11.CKR_DEVICE_REMOVED:                   "CKR_DEVICE_REMOVED",
	pkcs11.CKR_ENCRYPTED_DATA_INVALID:           "CKR_ENCRYPTED_DATA_INVALID",
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:         "CKR_ENCRYPTED_DATA_LEN_RANGE",
	pkcs11.CKR_FUNCTION_CANCELED:                "CKR_FUNCTION_CANCELED",
	pkcs11.CKR_FUNCTION_NOT_PARALLEL:            "CKR_FUNCTION_NOT_PARALLEL",
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:           "CKR_FUNCTION_NOT_SUPPORTED",
	pkcs11.CKR_KEY_HANDLE_INVALID:               "CKR_KEY_HANDLE_INVALID",
	pkcs11.CKR_KEY_SIZE_RANGE:                   "CKR_KEY_SIZE_RANGE",
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:            "CKR_KEY_TYPE_INCONSISTENT",
	pkcs11.CKR_KEY_NOT_NEEDED:                   "CKR_KEY_NOT_NEEDED",
	pkcs11.CKR_KEY_CHANGED:                      "CKR_KEY_CHANGED",
	pkcs11.CKR_KEY_NEEDED:                       "CKR_KEY_NEEDED",
	pkcs11.CKR_KEY_INDIGESTIBLE:                 "CKR_KEY_INDIGESTIBLE",
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED:       "CKR_KEY_FUNCTION_NOT_PERMITTED",
	pkcs11.CKR_KEY_NOT_WRAPPABLE:                "CKR_KEY_NOT_WRAPPABLE",
	pkcs11.CKR_KEY_UNEXTRACTABLE:                "CKR_KEY_UNEXTRACTABLE",
	pkcs11.CKR_MECHANISM_INVALID:                "CKR_MECHANISM_INVALID",
	pkcs11.CKR_MECHANISM_PARAM_INVALID:          "CKR_MECHANISM_PARAM_INVALID",
	pkcs11.CKR_OBJECT_HANDLE_INVALID:            "CKR_OBJECT_HANDLE_INVALID",
	pkcs11.CKR_OPERATION_ACTIVE:                 "CKR_OPERATION_ACTIVE",
	pkcs11.CKR_OPERATION_NOT_INITIALIZED:        "CKR_OPERATION_NOT_INITIALIZED",
	pkcs11.CKR_PIN_INCORRECT:                    "CKR_PIN_INCORRECT",
	pkcs11.CKR_PIN_INVALID:                      "CKR_PIN_INVALID",
	pkcs11.CKR_PIN_LEN_RANGE:                    "CKR_PIN_LEN_RANGE",
	pkcs11.CKR_PIN_EXPIRED:                      "CKR_PIN_EXPIRED",
	pkcs11.CKR_PIN_LOCKED:                       "CKR_PIN_LOCKED",
	pkcs11.CKR_SESSION_CLOSED:                   "CKR_SESSION_CLOSED",
	pkcs11.CKR_SESSION_COUNT:                    "CKR_SESSION_COUNT",
	pkcs11.CKR_SESSION_HANDLE_INVALID:           "CKR_SESSION_HANDLE_INVALID",
	pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED:   "CKR_SESSION_PARALLEL_NOT_SUPPORTED",
	pkcs11.CKR_SESSION_READ_ONLY:                "CKR_SESSION_READ_ONLY",
	pkcs11.CKR_SESSION_EXISTS:                   "CKR_SESSION_EXISTS",
	pkcs11.CKR_SESSION_READ_ONLY_EXISTS:         "CKR_SESSION_READ_ONLY_EXISTS",
	pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS:     "CKR_SESSION_READ_WRITE_SO_EXISTS",
	pkcs11.CKR_SIGNATURE_INVALID:                "CKR_SIGNATURE_INVALID",
	pkcs11.CKR_SIGNATURE_LEN_RANGE:              "CKR_SIGNATURE_LEN_RANGE",
	pkcs11.CKR_TEMPLATE_INCOMPLETE:              "CKR_TEMPLATE_INCOMPLETE",
	pkcs11.CKR_TEMPLATE_INCONSISTENT:            "CKR_TEMPLATE_INCONSISTENT",
	pkcs11.CKR_TOKEN_NOT_PRESENT:                "CKR_TOKEN_NOT_PRESENT",
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:             "CKR_TOKEN_NOT_RECOGNIZED",
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:            "CKR_TOKEN_WRITE_PROTECTED",
	pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:    "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
	pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE:        "CKR_UNWRAPPING_KEY_SIZE_RANGE",
	pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT: "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT",
	pkcs11.CKR_USER_ALREADY_LOGGED_IN:           "CKR_USER_ALREADY_LOGGED_IN",
	pkcs11.CKR_USER_NOT_LOGGED_IN:               "CKR_USER_NOT_LOGGED_IN",
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED:         "CKR_USER_PIN_NOT_INITIALIZED",
	pkcs11.CKR_USER_TYPE_INVALID:                "CKR_USER_TYPE_INVALID",
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN:   "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
	pkcs11.CKR_USER_TOO_MANY_TYPES:              "CKR_USER_TOO_MANY_TYPES",
	pkcs11.CKR_WRAPPED_KEY_INVALID:              "CKR_WRAPPED_KEY_INVALID",
	pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:            "CKR_WRAPPED_KEY_LEN_RANGE",
	pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID:      "CKR_WRAPPING_KEY_HANDLE_INVALID",
	pkcs11.CKR_WRAPPING_KEY_SIZE_RANGE:          "CKR_WRAPPING_KEY_SIZE_RANGE",
	pkcs11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT:   "CKR_WRAPPING_KEY_TYPE_INCONSISTENT",
	pkcs11.CKR_RANDOM_SEED_NOT_SUPPORTED:        "CKR_RANDOM_SEED_NOT_SUPPORTED",
	pkcs11.CKR_RANDOM_NO_RNG:                    "CKR_RANDOM_NO_RNG",
	pkcs11.CKR_DOMAIN_PARAMS_INVALID:            "CKR_DOMAIN_PARAMS_INVALID",
	pkcs11.CKR_BUFFER_TOO_SMALL:                 "CKR_BUFFER_TOO_SMALL",
	pkcs11.CKR_SAVED_STATE_INVALID:              "CKR_SAVED_STATE_INVALID",
	pkcs11.CKR_INFORMATION_SENSITIVE:            "CKR_INFORMATION_SENSITIVE",
	pkcs11.CKR_STATE_UNSAVEABLE:                 "CKR_STATE_UNSAVEABLE",
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:         "CKR_CRYPTOKI_NOT_INITIALIZED",
	pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED:     "CKR_CRYPTOKI_ALREADY_INITIALIZED",
	pkcs11.CKR_MUTEX_BAD:                        "CKR_MUTEX_BAD",
	pkcs11.CKR_MUTEX_NOT_LOCKED:                 "CKR_MUTEX_NOT_LOCKED",
	pkcs11.CKR_NEW_PIN_MODE:                     "CKR_NEW_PIN_MODE",
	pkcs11.CKR_NEXT_OTP:                         "CKR_NEXT_OTP",
	pkcs11.CKR_FUNCTION_REJECTED:                "CKR_FUNCTION_REJECTED",
	pkcs11.CKR_ACTION_PROHIBITED:                "CKR_ACTION_PROHIBITED",
	pkcs11.CKR_CURVE_NOT_SUPPORTED:              "CKR_CURVE_NOT_SUPPORTED",
	pkcs11.CKR_EXCEEDED_MAX_ITERATIONS:          "CKR_EXCEEDED_MAX_ITERATIONS",
	pkcs11.CKR_FIPS_SELF_TEST_FAILED:            "CKR_FIPS_SELF_TEST_FAILED",
	pkcs11.CKR_LIBRARY_LOAD_FAILED:              "CKR_LIBRARY_LOAD_FAILED",
	pkcs11.CKR_PIN_TOO_WEAK:                     "CKR_PIN_TOO_WEAK",
	pkcs11.CKR_PUBLIC_KEY_INVALID:               "CKR_PUBLIC_KEY_INVALID",
	ckrCopyProhibited:                           "CKR_COPY_PROHIBITED",
	ckrAEADDecryptFailed:                        "CKR_AEAD_DECRYPT_FAILED",
	ckrTokenResourceExceeded:                    "CKR_TOKEN_RESOURCE_EXCEEDED",
	ckrOperationCancelFailed:                    "CKR_OPERATION_CANCEL_FAILED",
	ckrKeyExhausted:                             "CKR_KEY_EXHAUSTED",
}
