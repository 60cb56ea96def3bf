package cloud

import (
	"bytes"
	"encoding/csv"
	"errors"
	"strings"
	"unicode"
)

// Errors of ParseAccessKeyCSV. None of them quotes the file, which is secret.
var (
	errCSVEmpty   = errors.New("access key CSV: the file is empty; download it again from the IAM console")
	errCSVSyntax  = errors.New("access key CSV: not a CSV file as the IAM console gives it")
	errCSVColumns = errors.New("access key CSV: no columns \"Access key ID\" and \"Secret access key\" in the first line")
	errCSVRow     = errors.New("access key CSV: no line with an access key ID and a secret access key below the header")
	errCSVRows    = errors.New("access key CSV: more than one access key; keep one line below the header")
	errCSVKey     = errors.New("access key CSV: the access key ID or the secret has characters that no access key has")
)

// ParseAccessKeyCSV reads an access key out of the CSV file that the IAM
// console offers for download. It understands all forms known:
//
//   - "Access key ID,Secret access key", today's file for an access key;
//   - "User name,Password,Access key ID,Secret access key,Console login link",
//     the file of a new user;
//   - "User name,Access key ID,Secret access key", in any capitalisation;
//   - the old rootkey.csv, with lines AWSAccessKeyId=… and AWSSecretKey=….
//
// Columns are found by name without regard to case, order or further columns.
// A byte-order mark and CRLF line ends are taken as they come. The file must
// hold exactly one key. The errors never quote the content.
func ParseAccessKeyCSV(content []byte) (accessKeyID, secretAccessKey string, err error) {
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	if len(bytes.TrimSpace(content)) == 0 {
		return "", "", errCSVEmpty
	}
	if id, secret, ok := parseRootKey(string(content)); ok {
		return checkAccessKey(id, secret)
	}

	r := csv.NewReader(bytes.NewReader(content))
	r.FieldsPerRecord = -1
	r.TrimLeadingSpace = true
	r.LazyQuotes = true // a password may hold a quotation mark
	records, err := r.ReadAll()
	if err != nil || len(records) == 0 {
		// csv.ParseError tells a line and a column only, but the reader's
		// wording is not ours to vouch for.
		return "", "", errCSVSyntax
	}
	idColumn, secretColumn := -1, -1
	for i, name := range records[0] {
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "access key id":
			idColumn = i
		case "secret access key":
			secretColumn = i
		}
	}
	if idColumn < 0 || secretColumn < 0 {
		return "", "", errCSVColumns
	}
	for _, record := range records[1:] {
		if max(idColumn, secretColumn) >= len(record) {
			continue
		}
		id, secret := strings.TrimSpace(record[idColumn]), strings.TrimSpace(record[secretColumn])
		if id == "" || secret == "" {
			continue
		}
		if accessKeyID != "" {
			return "", "", errCSVRows
		}
		accessKeyID, secretAccessKey = id, secret
	}
	if accessKeyID == "" {
		return "", "", errCSVRow
	}
	return checkAccessKey(accessKeyID, secretAccessKey)
}

// parseRootKey reads rootkey.csv, which has no header but a name on each line.
func parseRootKey(content string) (id, secret string, ok bool) {
	for line := range strings.Lines(content) {
		name, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if !found {
			continue
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "awsaccesskeyid":
			id = strings.TrimSpace(value)
		case "awssecretkey":
			secret = strings.TrimSpace(value)
		}
	}
	return id, secret, id != "" && secret != ""
}

// checkAccessKey keeps anything out of a request header that cannot be part of
// an access key: IDs are letters and digits, secrets are base64.
func checkAccessKey(id, secret string) (string, string, error) {
	notID := func(r rune) bool {
		return r > unicode.MaxASCII || r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}
	notSecret := func(r rune) bool { return r <= ' ' || r > '~' }
	if strings.ContainsFunc(id, notID) || strings.ContainsFunc(secret, notSecret) {
		return "", "", errCSVKey
	}
	return id, secret, nil
}
