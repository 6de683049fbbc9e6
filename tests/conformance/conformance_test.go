// Package conformance runs the Gateway API conformance suite against the cluster of KUBECONFIG.
//
// What is claimed, and where the report goes, are flags of the suite: see scripts/conformance.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
