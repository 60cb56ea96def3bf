package main

// deviations are the cases in which awssim is known not to be as AWS was, with
// the reason, by the name of the case. One that passes is a failure: the list is to
// be corrected. They are not for other endpoints.
var deviations = map[string]string{
	"test_hmac_create_key_invalid_operations": "it was recorded in 2023, when KeyUsage had three values; awssim has those of the current model",
	"test_key_rotations_limits":               "it was recorded when a key could be rotated on demand ten times; the limit is 25 since",
}
