package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	namespacepb "go.temporal.io/api/namespace/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/schema/sqlite"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Our search attributes, all of type keyword. Workflows set them once, at start.
var (
	Kind      = temporal.NewSearchAttributeKeyKeyword("SkyKind")
	Name      = temporal.NewSearchAttributeKeyKeyword("SkyName")
	Workspace = temporal.NewSearchAttributeKeyKeyword("SkyWorkspace")
	User      = temporal.NewSearchAttributeKeyKeyword("SkyUser")
)

func searchAttributes() map[string]enumspb.IndexedValueType {
	out := make(map[string]enumspb.IndexedValueType)
	for _, key := range []temporal.SearchAttributeKeyKeyword{Kind, Name, Workspace, User} {
		out[key.GetName()] = key.GetValueType()
	}
	return out
}

// createNamespace writes the namespace, search attributes included, straight into the database: through the API it
// would take effect only after the server's caches had been refreshed. Nothing happens if it exists.
func createNamespace(cfg *config.Config, name string, retention time.Duration) error {
	ns, err := sqlite.NewNamespaceConfig(clusterName, name, false, searchAttributes())
	if err != nil {
		return fmt.Errorf("describe namespace %s: %w", name, err)
	}
	ns.Detail.Config.Retention = durationpb.New(retention)
	if err := sqlite.CreateNamespaces(cfg.Persistence.DataStores[storeName].SQL, ns); err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// Ready waits until the engine answers for our namespace: history and visibility included, search attributes known. It
// returns ctx's error, with the engine's last answer, when that does not come in time, and at once when waiting is
// pointless (a wrong API key).
func (e *Engine) Ready(ctx context.Context) error {
	workflows := workflowservice.NewWorkflowServiceClient(e.conn)
	return e.retry(ctx, func(ctx context.Context) error {
		// Asking for what can't exist goes through to the history service.
		_, err := workflows.DescribeWorkflowExecution(ctx, &workflowservice.DescribeWorkflowExecutionRequest{
			Namespace: e.namespace,
			Execution: &commonpb.WorkflowExecution{WorkflowId: "engine-ready"},
		})
		var notFound *serviceerror.NotFound
		if err = serviceerror.FromStatus(statusOf(err)); err != nil && !errors.As(err, &notFound) {
			return err
		}
		_, err = workflows.CountWorkflowExecutions(ctx, &workflowservice.CountWorkflowExecutionsRequest{
			Namespace: e.namespace,
			Query:     readyQuery(),
		})
		return serviceerror.FromStatus(statusOf(err))
	})
}

// readyQuery names each of our search attributes and matches nothing.
func readyQuery() string {
	var terms []string
	for _, name := range slices.Sorted(maps.Keys(searchAttributes())) {
		terms = append(terms, name+" = 'engine-ready'")
	}
	return strings.Join(terms, " AND ")
}

// awaitNamespace waits until the frontend answers and knows the namespace.
func (e *Engine) awaitNamespace(ctx context.Context) error {
	_, err := e.describeNamespace(ctx)
	return err
}

func (e *Engine) describeNamespace(ctx context.Context) (*workflowservice.DescribeNamespaceResponse, error) {
	var out *workflowservice.DescribeNamespaceResponse
	err := e.retry(ctx, func(ctx context.Context) error {
		var err error
		out, err = workflowservice.NewWorkflowServiceClient(e.conn).DescribeNamespace(ctx,
			&workflowservice.DescribeNamespaceRequest{Namespace: e.namespace})
		err = serviceerror.FromStatus(statusOf(err))
		var missing *serviceerror.NamespaceNotFound
		var notFound *serviceerror.NotFound
		if !e.Embedded() && (errors.As(err, &missing) || errors.As(err, &notFound)) {
			return permanent{fmt.Errorf("it has no namespace %q: create it (temporal operator namespace create --namespace %s --retention 72h), "+
				"or name another one in temporal.namespace", e.namespace, e.namespace)}
		}
		return err
	})
	return out, err
}

// ensureRetention follows a changed setting. The server caches it; closed workflows get the new value within a minute.
func (e *Engine) ensureRetention(ctx context.Context, want time.Duration) error {
	ns, err := e.describeNamespace(ctx)
	if err != nil {
		return err
	}
	if ns.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration() == want {
		return nil
	}
	return e.retry(ctx, func(ctx context.Context) error {
		_, err := workflowservice.NewWorkflowServiceClient(e.conn).UpdateNamespace(ctx, &workflowservice.UpdateNamespaceRequest{
			Namespace: e.namespace,
			Config:    &namespacepb.NamespaceConfig{WorkflowExecutionRetentionTtl: durationpb.New(want)},
		})
		return serviceerror.FromStatus(statusOf(err))
	})
}

// ensureSearchAttributes registers what is missing.
func (e *Engine) ensureSearchAttributes(ctx context.Context) error {
	operator := operatorservice.NewOperatorServiceClient(e.conn)
	missing := searchAttributes()
	err := e.retry(ctx, func(ctx context.Context) error {
		have, err := operator.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: e.namespace})
		if err = serviceerror.FromStatus(statusOf(err)); err != nil {
			return err
		}
		for name, kind := range searchAttributes() {
			got, ok := have.GetCustomAttributes()[name]
			if !ok {
				continue
			}
			if got != kind {
				return permanent{fmt.Errorf("its namespace %s has a search attribute %s of type %s, and Skyloom needs %s: use another namespace",
					e.namespace, name, got, kind)}
			}
			delete(missing, name)
		}
		return nil
	})
	if err == nil && len(missing) > 0 {
		err = e.retry(ctx, func(ctx context.Context) error {
			_, err := operator.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
				Namespace:        e.namespace,
				SearchAttributes: missing,
			})
			err = serviceerror.FromStatus(statusOf(err))
			var exists *serviceerror.AlreadyExists // another replica was quicker
			if errors.As(err, &exists) {
				return nil
			}
			return err
		})
	}
	if err == nil || e.Embedded() {
		return err
	}
	// A hosted service does not let us look or add; Ready finds out whether the operator has added them.
	if e.knowsSearchAttributes(ctx) {
		return nil
	}
	var commands []string
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		commands = append(commands, fmt.Sprintf("temporal operator search-attribute create --namespace %s --name %s --type Keyword", e.namespace, name))
	}
	return fmt.Errorf("%w; if this account may not add search attributes, let an operator do it: %s", err, strings.Join(commands, "; "))
}

func (e *Engine) knowsSearchAttributes(ctx context.Context) bool {
	_, err := workflowservice.NewWorkflowServiceClient(e.conn).CountWorkflowExecutions(ctx,
		&workflowservice.CountWorkflowExecutionsRequest{Namespace: e.namespace, Query: readyQuery()})
	return err == nil
}
