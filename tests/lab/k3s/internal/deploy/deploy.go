// Package deploy applies the manifests of a server's manifests directory, and holds those of the packaged components.
package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const (
	scanEvery  = 15 * time.Second
	retryEvery = 2 * time.Second
	bufferSize = 4096
)

// Deployer applies manifests by server-side apply.
type Deployer struct {
	files  *tracker
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
	owner  string
}

// New makes a deployer for a directory.
func New(config *rest.Config, directory, node string) (*Deployer, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	found, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found))
	return &Deployer{&tracker{directory, map[string]version{}}, client, mapper, "deploy@" + node}, nil
}

// Run deletes the objects of removed manifests and then applies what lies in the directory, again and again.
func (d *Deployer) Run(ctx context.Context, removed [][]byte) {
	for _, content := range removed {
		if err := d.remove(ctx, content); err != nil {
			logrus.Errorf("Failed to delete disabled component: %v", err)
		}
	}
	for {
		wait := scanEvery
		if err := d.apply(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			logrus.Errorf("Failed to process manifests: %v", err)
			wait = retryEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (d *Deployer) apply(ctx context.Context) error {
	found, err := d.files.scan()
	if err != nil {
		return err
	}
	var failures []error
	for _, manifest := range found {
		if err := d.applyManifest(ctx, manifest.content); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", manifest.name, err))
			continue
		}
		d.files.applied(manifest)
		logrus.Infof("Applied manifest %s", manifest.name)
	}
	return errors.Join(failures...)
}

func (d *Deployer) applyManifest(ctx context.Context, content []byte) error {
	objects, err := decode(content)
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := d.resource(object)
		if err != nil {
			return err
		}
		options := metav1.ApplyOptions{FieldManager: d.owner, Force: true}
		if _, err := resource.Apply(ctx, object.GetName(), object, options); err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

func (d *Deployer) remove(ctx context.Context, content []byte) error {
	objects, err := decode(content)
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := d.resource(object)
		if err != nil {
			return err
		}
		propagation := metav1.DeletePropagationBackground
		err = resource.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &propagation})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// resource finds the client for an object. What the server knows may have changed since the last look.
func (d *Deployer) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := d.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		d.mapper.Reset()
		mapping, err = d.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return d.client.Resource(mapping.Resource), nil
	}
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return d.client.Resource(mapping.Resource).Namespace(namespace), nil
}

// decode reads the objects of a YAML or JSON text; lists are taken apart.
func decode(content []byte) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), bufferSize)
	var objects []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) == 0 {
			continue
		}
		if object.IsList() {
			list, err := object.ToList()
			if err != nil {
				return nil, err
			}
			for i := range list.Items {
				objects = append(objects, &list.Items[i])
			}
			continue
		}
		objects = append(objects, object)
	}
}
