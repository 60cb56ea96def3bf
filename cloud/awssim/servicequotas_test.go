package awssim_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas/types"

	"byokd/cloud/awssim"
)

// listed returns the quotas of a Region by name, all pages of them.
func (f *fixture) listed(in servicequotas.ListServiceQuotasInput) (quotas map[string]types.ServiceQuota, pages int) {
	f.t.Helper()
	in.ServiceCode = aws.String("kms")
	quotas = make(map[string]types.ServiceQuota)
	paginator := servicequotas.NewListServiceQuotasPaginator(f.quotas, &in)
	for paginator.HasMorePages() {
		pages++
		for _, q := range must[*servicequotas.ListServiceQuotasOutput](f.t)(paginator.NextPage(f.t.Context())).Quotas {
			quotas[*q.QuotaName] = q
		}
	}
	return quotas, pages
}

// Service Quotas lists the quotas that the simulator keeps to.
func TestListServiceQuotas(t *testing.T) {
	const parameters, symmetric = "GetParametersForImport request rate", "Cryptographic operations (symmetric) request rate"
	f := start(t, awssim.Options{Now: standing(), Quotas: &awssim.Quotas{PerSecond: map[string]float64{
		"kms:GetParametersForImport": 10, "kms:CreateAlias": 0, "servicequotas:ListServiceQuotas": 100}}})
	quotas, pages := f.listed(servicequotas.ListServiceQuotasInput{MaxResults: aws.Int32(10)})
	if len(quotas) != 35 || pages != 4 {
		t.Errorf("%d quotas on %d pages", len(quotas), pages)
	}
	q := quotas[parameters]
	if *q.Value != 10 || *q.QuotaCode != "L-515A0541" || *q.QuotaArn != "arn:aws:servicequotas:"+region+":"+awssim.DefaultAccount+":kms/L-515A0541" ||
		q.Period.PeriodUnit != types.PeriodUnitSecond || *q.Period.PeriodValue != 1 || !q.Adjustable || q.GlobalQuota {
		t.Errorf("GetParametersForImport is %+v", q)
	}
	if _, there := quotas["CreateAlias request rate"]; there || *quotas["CreateKey request rate"].Value != 5 {
		t.Errorf("of CreateAlias, which is lifted, and CreateKey: %v, %+v", there, quotas["CreateKey request rate"])
	}
	there, _ := f.with("AKIAEXAMPLE", "s", "", "us-east-1").listed(servicequotas.ListServiceQuotasInput{})
	if *there[symmetric].Value != 100_000 || *quotas[symmetric].Value != 20_000 {
		t.Errorf("us-east-1: %v, %s: %v", *there[symmetric].Value, region, *quotas[symmetric].Value)
	}
	f.SetQuotas(nil) // nothing is limited: AWS's numbers
	if quotas, _ := f.listed(servicequotas.ListServiceQuotasInput{QuotaCode: aws.String("L-515A0541")}); len(quotas) != 1 || *quotas[parameters].Value != 1 {
		t.Errorf("without limits: %v", quotas)
	}
	if quotas, _ := f.listed(servicequotas.ListServiceQuotasInput{QuotaAppliedAtLevel: types.AppliedLevelEnumResource}); len(quotas) != 0 {
		t.Errorf("of resources: %v", quotas)
	}
}

func TestListServiceQuotasErrors(t *testing.T) {
	f, ctx := start(t, awssim.Options{Now: standing(), Quotas: &awssim.Quotas{PerSecond: map[string]float64{"servicequotas:ListServiceQuotas": 5}}}), t.Context()
	for _, test := range []struct {
		in   servicequotas.ListServiceQuotasInput
		code string
	}{
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("nothing")}, "NoSuchResourceException"},
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms"), QuotaCode: aws.String("L-77777777")}, "NoSuchResourceException"},
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms"), NextToken: aws.String("x")}, "InvalidPaginationTokenException"},
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms"), MaxResults: aws.Int32(101)}, "ValidationException"},
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms")}, ""},
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms")}, ""},
		{servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms")}, "TooManyRequestsException"},
	} {
		_, err := f.quotas.ListServiceQuotas(ctx, &test.in)
		if test.code != "" {
			wantCode(t, err, test.code)
		} else if err != nil {
			t.Error(err)
		}
	}
}
