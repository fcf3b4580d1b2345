// Reads rendered manifests on standard input and decodes each object strictly into the type that Kubernetes publishes for
// it: an unknown field, a field twice or a value of another type is an error. For the tests of the chart.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	manifest "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
)

// Kinds of others, which k8s.io/api does not know.
var others = map[string]bool{
	"cert-manager.io":           true,
	"external-secrets.io":       true,
	"gateway.networking.k8s.io": true,
	"monitoring.coreos.com":     true,
}

func main() {
	scheme := runtime.NewScheme()
	builder := runtime.SchemeBuilder{
		apps.AddToScheme, autoscaling.AddToScheme, batch.AddToScheme, core.AddToScheme, networking.AddToScheme, policy.AddToScheme,
	}
	if err := builder.AddToScheme(scheme); err != nil {
		fail(err)
	}
	known, foreign := 0, 0
	documents := manifest.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fail(err)
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			fail(err)
		}
		if kind.Kind == "" {
			continue
		}
		name := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
		if others[name.Group] {
			foreign++
			continue
		}
		object, err := scheme.New(name)
		if err != nil {
			fail(err)
		}
		text, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			fail(fmt.Errorf("%s: %w", name, err))
		}
		// As the API server reads it: unlike Go's own, this one minds upper and lower case.
		faults, err := json.UnmarshalStrict(text, object)
		for _, fault := range append(faults, err) {
			if fault != nil {
				fail(fmt.Errorf("%s: %w", name, fault))
			}
		}
		known++
	}
	fmt.Printf("%d objects of Kubernetes, %d of others\n", known, foreign)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
