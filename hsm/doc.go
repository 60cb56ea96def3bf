// Package hsm makes AES keys on a PKCS#11 token and wraps them for AWS KMS
// inside the token.
//
// A process has one [Modules], which owns its PKCS#11 libraries, and takes a
// [Token] from it for each token that is configured. A Token connects when it
// is first used, proves by a self-test which wrapping algorithm works, and
// reconnects by itself.
//
// # Sessions and concurrency
//
// A login belongs to the process, not to a session: a Token keeps one session
// that does nothing but hold the login, and opens another for each operation.
// How many operations are inside a library at once is limited for the library,
// to one by default: many crash or err when used in parallel, whatever they
// promise.
//
// # Tokens with many objects
//
// To search a token takes as long as it has objects. A Token keeps the handles of
// the keys that it has made or found, as long as its login lasts, so that to make,
// find, wrap and destroy a key of its own takes the same calls on a full token as
// on an empty one. [Token.List] reads all of them, and shares what it read.
//
// # Recovery
//
// What goes wrong is mended with the least that may help, and the operation
// run again: a new session, then a new login, then the whole library
// finalized and initialised anew, which its other tokens survive by connecting
// again. A PIN that the token refused is not tried again; see [Logins].
//
// A call into C cannot be cancelled. One that does not return within
// [Config.CallTimeout] makes its library unusable for the rest of the process;
// see [Token.Hung].
//
// # Errors
//
// [Error] holds the function and its CK_RV. [ClassOf] and [WaitingFor] say what
// an error means to a job.
package hsm
