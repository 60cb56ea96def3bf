package awssim

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	signingAlgorithm = "AWS4-HMAC-SHA256"
	signingTime      = "20060102T150405Z"

	// signingWindow is how far a signature's time may be from the service's.
	signingWindow = 5 * time.Minute
)

// An identity is who made a request.
type identity struct {
	account string
	arn     string
	userID  string
	role    string // the role's ARN, for a session
	judged  bool   // by IAM policies
}

// A session is a set of temporary credentials.
type session struct {
	identity
	secret  string
	token   string
	expires time.Time
}

// A signature is what an Authorization header says.
type signature struct {
	accessKey, date, region, service string
	headers                          []string
	value                            string
}

// authenticate finds out who sent the request and for which Region, and
// verifies the signature if the secret is known. Each protocol has its own
// codes for the same refusals.
//
// The time in a signature is compared with the simulator's clock and with the
// real one, whichever is nearer: clients sign with the latter, unless they
// learnt from the Date header that the service's clock is elsewhere.
func (c *call) authenticate(r *http.Request, body []byte) error {
	query := c.service.query()
	refuse := func(code, queryCode, format string, args ...any) error {
		if query {
			code = queryCode
		}
		return fail(code, format, args...)
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return refuse("MissingAuthenticationTokenException", "MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	sig, problem := parseAuthorization(header)
	if problem != "" {
		return refuse("IncompleteSignatureException", "IncompleteSignature", "%s", problem)
	}
	mismatch := func(format string, args ...any) error {
		return refuse("InvalidSignatureException", "SignatureDoesNotMatch", format, args...)
	}
	var wrong []string
	if !c.sim.serves(sig.region, r.Host) {
		wrong = append(wrong, "Credential should be scoped to a valid region, not '"+sig.region+"'.")
	}
	if sig.service != c.service.name {
		wrong = append(wrong, "Credential should be scoped to correct service: '"+c.service.name+"'.")
	}
	if len(wrong) > 0 {
		return mismatch("%s", strings.Join(wrong, " "))
	}
	at, err := time.Parse(signingTime, r.Header.Get("X-Amz-Date"))
	if err != nil {
		return refuse("IncompleteSignatureException", "IncompleteSignature",
			"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. Authorization=%s", header)
	}
	if !strings.HasPrefix(r.Header.Get("X-Amz-Date"), sig.date) {
		return mismatch("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.",
			sig.date, at.Format("20060102"), at.Format(signingTime))
	}

	c.sim.mu.Lock()
	now := c.sim.now()
	known, isKey := c.sim.credentials[sig.accessKey]
	temporary := c.sim.sessions[sig.accessKey]
	c.sim.mu.Unlock()

	secret := ""
	switch token := r.Header.Get("X-Amz-Security-Token"); {
	case temporary != nil && token == temporary.token:
		if !now.Before(temporary.expires) {
			return refuse("ExpiredTokenException", "ExpiredToken", "The security token included in the request is expired")
		}
		c.caller, secret = temporary.identity, temporary.secret
	case isKey && token == "":
		c.caller = identity{account: known.Account, arn: known.ARN, userID: userID("AIDA", known.ARN)}
		secret = known.SecretAccessKey
	case temporary == nil && len(c.sim.options.Credentials) == 0:
		arn := "arn:" + partition(sig.region) + ":iam::" + DefaultAccount + ":user/awssim"
		c.caller = identity{account: DefaultAccount, arn: arn, userID: userID("AIDA", arn)}
	default:
		return refuse("UnrecognizedClientException", "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	c.caller.judged = c.sim.judges(c.caller)
	c.request.Region, c.request.Account, c.request.AccessKey = sig.region, c.caller.account, sig.accessKey
	if secret == "" {
		return nil
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(sig.headers, name) {
			return mismatch("There were headers present in the request which were not signed: %s", name)
		}
	}
	clock := now
	if wall := time.Now(); at.Sub(wall).Abs() < at.Sub(now).Abs() {
		clock = wall
	}
	switch clock = clock.UTC(); {
	case at.Before(clock.Add(-signingWindow)):
		return mismatch("Signature expired: %s is now earlier than %s (%s - 5 min.)",
			at.Format(signingTime), clock.Add(-signingWindow).Format(signingTime), clock.Format(signingTime))
	case at.After(clock.Add(signingWindow)):
		return mismatch("Signature not yet current: %s is still later than %s (%s + 5 min.)",
			at.Format(signingTime), clock.Add(signingWindow).Format(signingTime), clock.Format(signingTime))
	}
	if !hmac.Equal([]byte(sig.sign(r, body, at, secret)), []byte(sig.value)) {
		return mismatch("The request signature we calculated does not match the signature you provided. " +
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

// serves reports whether the simulator is an endpoint of a Region: that of its
// own name, if the client calls it by a name as AWS gives to endpoints, such as
// kms.eu-central-1.localhost, and one of [Options.Regions], if there are any.
func (s *Sim) serves(region, host string) bool {
	labels := strings.Split(host, ".")
	for i, label := range labels[1:] {
		name := strings.TrimSuffix(labels[i], "-fips")
		isService := slices.ContainsFunc(services, func(each *service) bool { return each.name == name })
		if isService && compiled(regionName).MatchString(label) && label != region {
			return false
		}
	}
	return len(s.options.Regions) == 0 || slices.Contains(s.options.Regions, region)
}

// regionName is the form of the name of a Region.
const regionName = "[a-z]{2,4}(-[a-z]+)+-[0-9]+"

// parseAuthorization reads an Authorization header. The problem is empty if it
// is complete.
func parseAuthorization(header string) (s signature, problem string) {
	rest, ok := strings.CutPrefix(header, signingAlgorithm+" ")
	if !ok {
		return s, "Authorization header must start with " + signingAlgorithm + "."
	}
	parts := make(map[string]string)
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[name] = value
	}
	for _, name := range []string{"Credential", "Signature", "SignedHeaders"} {
		if parts[name] == "" {
			return s, "Authorization header requires '" + name + "' parameter. Authorization=" + signingAlgorithm
		}
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(scope) != 5 || slices.Contains(scope, "") || scope[4] != "aws4_request" || !compiled("[a-z0-9-]+").MatchString(scope[2]) {
		return s, "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '" + parts["Credential"] + "'"
	}
	s = signature{
		accessKey: scope[0], date: scope[1], region: scope[2], service: scope[3],
		headers: strings.Split(parts["SignedHeaders"], ";"),
		value:   parts["Signature"],
	}
	if !slices.Contains(s.headers, "host") {
		return s, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
	}
	return s, ""
}

// sign computes what the signature should be (AWS Signature Version 4, header
// form).
func (s *signature) sign(r *http.Request, body []byte, at time.Time, secret string) string {
	var canonical strings.Builder
	canonical.WriteString(r.Method + "\n" + escapePath(r.URL) + "\n" + canonicalQuery(r.URL) + "\n")
	for _, name := range s.headers {
		values := slices.Clone(r.Header.Values(name))
		switch name { // net/http keeps these two elsewhere
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.Itoa(len(body))}
		}
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		canonical.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	canonical.WriteString("\n" + strings.Join(s.headers, ";") + "\n" + sha256Hex(body))

	toSign := strings.Join([]string{
		signingAlgorithm,
		at.Format(signingTime),
		s.date + "/" + s.region + "/" + s.service + "/aws4_request",
		sha256Hex([]byte(canonical.String())),
	}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, "aws4_request", toSign} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key)
}

func escapePath(u *url.URL) string {
	if p := u.EscapedPath(); p != "" {
		return p
	}
	return "/"
}

// canonicalQuery returns the query string, sorted, with everything escaped but
// the unreserved characters of RFC 3986.
func canonicalQuery(u *url.URL) string {
	var pairs []string
	for name, values := range u.Query() {
		for _, v := range values {
			pairs = append(pairs, escape(name)+"="+escape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// userID returns an ID as IAM gives to its principals: a prefix that tells the
// kind, and 17 characters that are always the same for one principal.
func userID(prefix, arn string) string {
	return prefix + strings.ToUpper(sha256Hex([]byte(arn))[:17])
}
