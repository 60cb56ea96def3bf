package awssim

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"
)

const (
	stsVersion = "2011-06-15"
	stsSpace   = "https://sts.amazonaws.com/doc/2011-06-15/"
)

var stsOperations = map[string]operation{
	"GetCallerIdentity": op((*call).getCallerIdentity),
	"AssumeRole":        op((*call).assumeRole),
}

// formValue returns one parameter of a form.
func formValue(body []byte, name string) string {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return ""
	}
	return form.Get(name)
}

// decodeForm reads the parameters of a form into the members of the input that
// bear their names: strings and numbers.
func decodeForm(body []byte, input any) error {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return fail("MalformedQueryString", "The query string contains a syntax error")
	}
	v := reflect.ValueOf(input).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if !form.Has(name) {
			continue
		}
		switch p := v.Field(i).Addr().Interface().(type) {
		case **string:
			value := form.Get(name)
			*p = &value
		case **int64:
			n, err := strconv.ParseInt(form.Get(name), 10, 64)
			if err != nil {
				return fail("MalformedInput", "%s is not a number", name)
			}
			*p = &n
		}
	}
	return nil
}

type getCallerIdentityOutput struct {
	XMLName   xml.Name `xml:"GetCallerIdentityResponse"`
	Space     string   `xml:"xmlns,attr"`
	Arn       string   `xml:"GetCallerIdentityResult>Arn"`
	UserID    string   `xml:"GetCallerIdentityResult>UserId"`
	Account   string   `xml:"GetCallerIdentityResult>Account"`
	RequestID string   `xml:"ResponseMetadata>RequestId"`
}

func (c *call) getCallerIdentity(*struct{}) (any, error) {
	return &getCallerIdentityOutput{
		Space: stsSpace, Arn: c.caller.arn, UserID: c.caller.userID, Account: c.caller.account, RequestID: c.id,
	}, nil
}

type assumeRoleInput struct {
	RoleArn         *string `required:"" len:"20,2048"`
	RoleSessionName *string `required:"" len:"2,64" pattern:"[\\w+=,.@-]*"`
	DurationSeconds *int64  `range:"900,43200"`
	ExternalId      *string `len:"2,1224" pattern:"[\\w+=,.@:\\/-]*"`
}

type assumeRoleOutput struct {
	XMLName         xml.Name `xml:"AssumeRoleResponse"`
	Space           string   `xml:"xmlns,attr"`
	AssumedRoleID   string   `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
	Arn             string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
	AccessKeyID     string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
	SecretAccessKey string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	SessionToken    string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
	Expiration      string   `xml:"AssumeRoleResult>Credentials>Expiration"`
	RequestID       string   `xml:"ResponseMetadata>RequestId"`
}

// defaultSession is how long a role session lasts if the request does not say.
const defaultSession = time.Hour

func (c *call) assumeRole(in *assumeRoleInput) (any, error) {
	arn := *in.RoleArn
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "iam" || !isAccount(parts[4]) || !strings.HasPrefix(parts[5], "role/") {
		return nil, fail("ValidationError", "%s is invalid", arn)
	}
	role, known := c.sim.roles[arn]
	if c.sim.deleted[arn] || len(c.sim.options.Roles) > 0 && (!known || role.ExternalID != "" && role.ExternalID != deref(in.ExternalId)) {
		return nil, fail("AccessDenied", c.denied(arn))
	}
	name := parts[5][strings.LastIndex(parts[5], "/")+1:]
	life := defaultSession
	if in.DurationSeconds != nil {
		life = time.Duration(*in.DurationSeconds) * time.Second
	}
	id := userID("AROA", arn) + ":" + *in.RoleSessionName
	out := &assumeRoleOutput{
		Space:           stsSpace,
		AssumedRoleID:   id,
		Arn:             "arn:" + parts[1] + ":sts::" + parts[4] + ":assumed-role/" + name + "/" + *in.RoleSessionName,
		AccessKeyID:     "ASIA" + strings.ToUpper(hex.EncodeToString(randomBytes(8))),
		SecretAccessKey: base64.StdEncoding.EncodeToString(randomBytes(30)),
		SessionToken:    base64.StdEncoding.EncodeToString(randomBytes(96)),
		Expiration:      c.now.Add(life).UTC().Format(time.RFC3339),
		RequestID:       c.id,
	}
	c.sim.sessions[out.AccessKeyID] = &session{
		identity: identity{account: parts[4], arn: out.Arn, userID: id, role: arn},
		secret:   out.SecretAccessKey,
		token:    out.SessionToken,
		expires:  c.now.Add(life),
	}
	return out, nil
}

func isAccount(s string) bool { return compiled("[0-9]{12}").MatchString(s) }
