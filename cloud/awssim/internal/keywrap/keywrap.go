// Package keywrap is AES key wrap with padding (RFC 5649), the second half of
// KMS's RSA_AES_KEY_WRAP algorithms.
package keywrap

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// prefix begins the alternative initial value (RFC 5649, section 3).
const prefix = 0xa65959a6

// Wrap wraps data under an AES key. The data must have from 1 to 2^32-1 bytes.
func Wrap(key, data []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, errors.New("there is nothing to wrap")
	}
	n := (len(data) + 7) / 8
	out := make([]byte, 8+8*n)
	binary.BigEndian.PutUint32(out, prefix)
	binary.BigEndian.PutUint32(out[4:], uint32(len(data)))
	copy(out[8:], data)
	if n == 1 {
		block.Encrypt(out, out)
		return out, nil
	}
	var b [16]byte
	copy(b[:8], out)
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(b[8:], out[8*i:])
			block.Encrypt(b[:], b[:])
			binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(n*j+i))
			copy(out[8*i:], b[8:])
		}
	}
	copy(out, b[:8])
	return out, nil
}

// Unwrap takes off what Wrap did. It fails if the data was wrapped under
// another key or was changed.
func Unwrap(key, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if len(wrapped) < 16 || len(wrapped)%8 != 0 {
		return nil, errors.New("not a length of wrapped data")
	}
	n := len(wrapped)/8 - 1
	out := append([]byte(nil), wrapped...)
	if n == 1 {
		block.Decrypt(out, out)
	} else {
		var b [16]byte
		copy(b[:8], out)
		for j := 5; j >= 0; j-- {
			for i := n; i >= 1; i-- {
				binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(n*j+i))
				copy(b[8:], out[8*i:])
				block.Decrypt(b[:], b[:])
				copy(out[8*i:], b[8:])
			}
		}
		copy(out, b[:8])
	}
	size := uint64(binary.BigEndian.Uint32(out[4:]))
	data := out[8:]
	good := binary.BigEndian.Uint32(out) == prefix && size <= uint64(len(data)) && size+8 > uint64(len(data))
	if !good || subtle.ConstantTimeCompare(data[size:], make([]byte, len(data)-int(size))) == 0 {
		return nil, errors.New("the data does not unwrap under this key")
	}
	return data[:size], nil
}
