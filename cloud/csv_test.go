package cloud_test

import (
	"strings"
	"testing"

	"byokd/cloud"
)

const (
	csvID     = "AKIAIOSFODNN7EXAMPLE"
	csvSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

func TestParseAccessKeyCSV(t *testing.T) {
	const bom = "\xef\xbb\xbf"
	row := csvID + "," + csvSecret
	for name, content := range map[string]string{
		"console today":      bom + "Access key ID,Secret access key\r\n" + row + "\r\n",
		"no BOM, no CRLF":    "Access key ID,Secret access key\n" + row + "\n",
		"no end of line":     "Access key ID,Secret access key\n" + row,
		"new user":           bom + "User name,Password,Access key ID,Secret access key,Console login link\r\nalice,\"p,w\"\"d\"," + row + ",https://111122223333.signin.aws.amazon.com/console\r\n",
		"bare quote":         "User name,Password,Access key ID,Secret access key\r\nalice,p\"w," + row + "\r\n",
		"short form":         "User name,Access key ID,Secret access key\r\nalice," + row + "\r\n",
		"oldest":             "User Name,Access Key Id,Secret Access Key\r\n\"alice\"," + row + "\r\n",
		"shouted":            "USER NAME,ACCESS KEY ID,SECRET ACCESS KEY\nalice," + row + "\n",
		"other order":        "Secret access key,Access key ID\n" + csvSecret + "," + csvID + "\n",
		"spaces, blank rows": "Access key ID, Secret access key\n\n " + csvID + " , " + csvSecret + " \n\n",
		"rootkey":            "AWSAccessKeyId=" + csvID + "\r\nAWSSecretKey=" + csvSecret + "\r\n",
		"rootkey with BOM":   bom + "AWSAccessKeyId=" + csvID + "\nAWSSecretKey=" + csvSecret,
	} {
		t.Run(name, func(t *testing.T) {
			id, secret, err := cloud.ParseAccessKeyCSV([]byte(content))
			if err != nil {
				t.Fatal(err)
			}
			if id != csvID || secret != csvSecret {
				t.Errorf("got %q, %q", id, secret)
			}
		})
	}
}

func TestParseAccessKeyCSVRefuses(t *testing.T) {
	for name, test := range map[string]struct{ content, want string }{
		"empty":            {"", "empty"},
		"BOM only":         {"\xef\xbb\xbf\r\n", "empty"},
		"no header":        {csvID + "," + csvSecret + "\n", "no columns"},
		"header only":      {"Access key ID,Secret access key\r\n", "no line"},
		"no secret":        {"Access key ID,Secret access key\r\n" + csvID + ",\r\n", "no line"},
		"short row":        {"Access key ID,Secret access key\r\n" + csvID + "\r\n", "no line"},
		"no secret column": {"User name,Access key ID\r\nalice," + csvID + "\r\n", "no columns"},
		"two keys":         {"Access key ID,Secret access key\n" + csvID + "," + csvSecret + "\nAKIA2," + csvSecret + "\n", "more than one"},
		"JSON":             {`{"AccessKeyId": "` + csvID + `", "SecretAccessKey": "` + csvSecret + `"}`, "no columns"},
		"header injection": {"Access key ID,Secret access key\n\"" + csvID + "\nX: y\"," + csvSecret + "\n", "characters"},
		"rootkey, half":    {"AWSAccessKeyId=" + csvID + "\n", "no columns"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := cloud.ParseAccessKeyCSV([]byte(test.content))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			if strings.Contains(err.Error(), csvID) || strings.Contains(err.Error(), csvSecret) {
				t.Errorf("the error quotes the file: %v", err)
			}
		})
	}
}

func FuzzParseAccessKeyCSV(f *testing.F) {
	f.Add([]byte("\xef\xbb\xbfAccess key ID,Secret access key\r\nAKIA,s/e+c=\r\n"))
	f.Add([]byte("User name,Password,Access key ID,Secret access key,Console login link\n\"a\",\"b\"\"c\",d,e,f\n"))
	f.Add([]byte("AWSAccessKeyId=AKIA\r\nAWSSecretKey=secret\r\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		id, secret, err := cloud.ParseAccessKeyCSV(content)
		if err != nil {
			if id != "" || secret != "" {
				t.Error("an error and a key")
			}
			return
		}
		for _, s := range []string{id, secret} {
			if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
				t.Errorf("accepted %q", s)
			}
		}
	})
}
