package cloud

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// The services that byokd talks to, by the names that [aws.endpoints.REGION]
// uses.
const (
	ServiceKMS     = "kms"
	ServiceEvents  = "events"
	ServiceSTS     = "sts"
	ServiceTagging = "tagging"
	ServiceQuotas  = "servicequotas"
)

// Services returns the names of the services that are talked to, KMS first;
// ServiceQuotas only with Settings.FromServiceQuotas.
func (c *Cloud) Services() []string {
	services := []string{ServiceKMS, ServiceEvents, ServiceSTS, ServiceTagging}
	if c.settings.FromServiceQuotas {
		services = append(services, ServiceQuotas)
	}
	return services
}

// Endpoints are endpoint URLs, one per service; "" leaves AWS's own.
type Endpoints struct {
	KMS, Events, STS, Tagging, ServiceQuotas string
}

func (e Endpoints) of(service string) string {
	switch service {
	case ServiceKMS:
		return e.KMS
	case ServiceEvents:
		return e.Events
	case ServiceSTS:
		return e.STS
	case ServiceTagging:
		return e.Tagging
	case ServiceQuotas:
		return e.ServiceQuotas
	}
	return ""
}

// endpointsFromEnvironment reads the overrides of byokd's own environment: the
// variable of the service, else AWS_ENDPOINT_URL.
//
// Source: AWS SDKs and Tools Reference Guide, "Service-specific endpoints".
func endpointsFromEnvironment() Endpoints {
	if ignore, err := strconv.ParseBool(os.Getenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")); err == nil && ignore {
		return Endpoints{}
	}
	get := func(name string) string {
		if v := os.Getenv("AWS_ENDPOINT_URL_" + name); v != "" {
			return v
		}
		return os.Getenv("AWS_ENDPOINT_URL")
	}
	return Endpoints{
		KMS:           get("KMS"),
		Events:        get("EVENTBRIDGE"),
		STS:           get("STS"),
		Tagging:       get("RESOURCE_GROUPS_TAGGING_API"),
		ServiceQuotas: get("SERVICE_QUOTAS"),
	}
}

// fipsEvents are the Regions of the aws partition for which AWS lists a FIPS
// endpoint of EventBridge. The SDK would make up a name for any Region.
//
// Source: AWS General Reference, "Amazon EventBridge endpoints and quotas".
var fipsEvents = map[string]bool{
	"us-east-1": true, "us-east-2": true, "us-west-1": true, "us-west-2": true,
	"ca-central-1": true, "ca-west-1": true,
}

// Endpoint returns the URL that requests for a service (one of the Service
// constants) in a Region go to, and whether it is an override from byokd.toml
// or byokd's environment. The URL is "" where AWS has no such endpoint. An
// override that [Cloud.Validate] refuses is returned as it stands.
func (c *Cloud) Endpoint(service, region string) (url string, overridden bool) {
	if url, _ := c.override(service, region); url != "" {
		return url, true
	}
	url, err := c.resolve(service, region)
	if err != nil {
		return "", false
	}
	return url, false
}

// Validate checks all endpoint overrides, those of byokd's environment too. The
// error is of class Operator and names the setting.
func (c *Cloud) Validate() error {
	regions := []string{""}
	for region := range c.settings.Regional {
		regions = append(regions, region)
	}
	for _, region := range regions {
		for _, service := range c.Services() {
			if _, err := c.checkedOverride(service, region); err != nil {
				return err
			}
		}
	}
	return nil
}

// override returns the URL that replaces AWS's own, and the setting that it
// comes from: the Region's, else the one for all, else the environment's.
// Shared AWS configuration files have no say: an endpoint decides under whose
// key HSM keys are wrapped.
func (c *Cloud) override(service, region string) (url, setting string) {
	if url := c.settings.Regional[region].of(service); url != "" {
		return url, fmt.Sprintf("[aws.endpoints.%s] %s", region, service)
	}
	all := Endpoints{
		KMS:           c.settings.KMSEndpoint,
		Events:        c.settings.EventBridgeEndpoint,
		STS:           c.settings.STSEndpoint,
		Tagging:       c.settings.TaggingEndpoint,
		ServiceQuotas: c.settings.ServiceQuotasEndpoint,
	}
	if url := all.of(service); url != "" {
		if service == ServiceEvents {
			service = "eventbridge"
		}
		return url, fmt.Sprintf("[aws] %s_endpoint", service)
	}
	return c.environment.of(service), "environment variable AWS_ENDPOINT_URL for " + service
}

func (c *Cloud) checkedOverride(service, region string) (string, error) {
	override, setting := c.override(service, region)
	if override == "" {
		return "", nil
	}
	u, err := url.Parse(override)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return "", misconfigured("%s: not a URL such as https://host:port", setting)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", misconfigured("%s: an endpoint has no user, query or fragment", setting)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return "", misconfigured("%s: http:// is for loopback addresses only, and %s is none; use https://", setting, u.Hostname())
	case u.Scheme != "http" && u.Scheme != "https":
		return "", misconfigured("%s: begins with neither https:// nor http://", setting)
	}
	return strings.TrimSuffix(override, "/"), nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// endpoint returns the checked URL for a client.
func (c *Cloud) endpoint(service, region string) (string, error) {
	if region == "" {
		return "", misconfigured("no Region is given for %s", service)
	}
	url, err := c.checkedOverride(service, region)
	if err != nil || url != "" {
		return url, err
	}
	url, err = c.resolve(service, region)
	if err != nil {
		return "", misconfigured("no endpoint for %s in Region %s: %w", service, region, err)
	}
	return url, nil
}

// resolve returns AWS's own URL, by the SDK's resolvers.
func (c *Cloud) resolve(service, region string) (string, error) {
	ctx := context.Background() // the resolvers compute, they do not wait
	fips, dual := aws.Bool(c.settings.UseFIPS), aws.Bool(c.settings.UseDualStack)
	switch service {
	case ServiceKMS:
		e, err := kms.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, kms.EndpointParameters{
			Region: &region, UseFIPS: fips, UseDualStack: dual}.WithDefaults())
		return e.URI.String(), err
	case ServiceSTS:
		e, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sts.EndpointParameters{
			Region: &region, UseFIPS: fips, UseDualStack: dual}.WithDefaults())
		return e.URI.String(), err
	case ServiceTagging:
		// AWS lists no FIPS endpoint for tagging.
		e, err := tagging.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, tagging.EndpointParameters{
			Region: &region, UseDualStack: dual}.WithDefaults())
		return e.URI.String(), err
	case ServiceQuotas:
		// AWS lists neither FIPS nor dual-stack endpoints of it.
		//
		// Source: AWS General Reference, "Service Quotas endpoints and quotas".
		e, err := servicequotas.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, servicequotas.EndpointParameters{
			Region: &region}.WithDefaults())
		return e.URI.String(), err
	case ServiceEvents:
		// Dual-stack names are known to fail for PutEvents. In GovCloud the
		// FIPS name resolves to the plain one.
		fips := c.settings.UseFIPS && (fipsEvents[region] || strings.HasPrefix(region, "us-gov-"))
		e, err := eventbridge.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, eventbridge.EndpointParameters{
			Region: &region, UseFIPS: &fips}.WithDefaults())
		return e.URI.String(), err
	}
	return "", fmt.Errorf("unknown service %q", service)
}
