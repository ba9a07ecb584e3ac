package engine

import (
	"strings"
	"sync/atomic"
	"time"

	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
)

const (
	loopback    = "127.0.0.1"
	clusterName = "active"
	storeName   = "sqlite"
	// historyShards can't be changed once a database exists. One connection leaves nothing to gain from more.
	historyShards = 1
)

// serviceNames are the services that run in the process. The internal frontend lets the engine's own workers in, which
// hold no API key.
func serviceNames() []string {
	return []string{
		string(primitives.FrontendService),
		string(primitives.InternalFrontendService),
		string(primitives.HistoryService),
		string(primitives.MatchingService),
		string(primitives.WorkerService),
	}
}

// serverConfig is the static configuration of the embedded server.
func serverConfig(database string, p ports) *config.Config {
	store := sqlConfig(database)
	rpc := func(port int) config.Service {
		return config.Service{RPC: config.RPC{GRPCPort: port, BindOnIP: loopback}}
	}
	return &config.Config{
		Global: config.Global{
			Membership: config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: loopback},
		},
		Persistence: config.Persistence{
			DefaultStore:     storeName,
			VisibilityStore:  storeName,
			NumHistoryShards: historyShards,
			// One *config.SQL for both: the plugin then shares one connection.
			DataStores: map[string]config.DataStore{storeName: {SQL: store}},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10,
			MasterClusterName:        clusterName,
			CurrentClusterName:       clusterName,
			ClusterInformation: map[string]cluster.ClusterInformation{
				clusterName: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: p.address(p.Frontend)},
			},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Services: map[string]config.Service{
			string(primitives.FrontendService):         rpc(p.Frontend),
			string(primitives.InternalFrontendService): rpc(p.internal),
			string(primitives.HistoryService):          rpc(p.history),
			string(primitives.MatchingService):         rpc(p.matching),
			string(primitives.WorkerService):           rpc(p.worker),
		},
		Archival: config.Archival{
			History:    config.HistoryArchival{State: "disabled"},
			Visibility: config.VisibilityArchival{State: "disabled"},
		},
		NamespaceDefaults: config.NamespaceDefaults{
			Archival: config.ArchivalNamespaceDefaults{
				History:    config.HistoryArchivalNamespaceDefaults{State: "disabled"},
				Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"},
			},
		},
	}
}

// sqlConfig describes the SQLite file. Keys that are no URI parameters of SQLite become pragmas.
func sqlConfig(database string) *config.SQL {
	return &config.SQL{
		PluginName:   sqlite.PluginName,
		DatabaseName: escapePath(database),
		MaxConns:     1,
		MaxIdleConns: 1,
		ConnectAttributes: map[string]string{
			"mode":         "rwc",
			"journal_mode": "wal",
			"synchronous":  "2", // FULL: an acknowledged write survives a power cut
			"busy_timeout": "10000",
			"cache_size":   "-8000", // KiB, negative by SQLite's convention
			"temp_store":   "2",     // memory
			// The log file shrinks back to this after a burst.
			"journal_size_limit": "16777216",
		},
	}
}

// escapePath makes a path fit for a "file:" URI of SQLite, where ?, # and % have a meaning.
func escapePath(path string) string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
}

// dynamicConfig serves the settings that differ from the server's defaults.
type dynamicConfig struct {
	values map[dynamicconfig.Key][]dynamicconfig.ConstrainedValue
	// settled turns true when the start is over: from then on the namespace cache, which polls the database from each
	// of the five services, may be lazy. Before, a new search attribute has to be seen at once.
	settled      atomic.Bool
	eager, lazy  []dynamicconfig.ConstrainedValue
	namespaceKey dynamicconfig.Key
}

func newDynamicConfig() *dynamicConfig {
	one := func(v any) []dynamicconfig.ConstrainedValue { return []dynamicconfig.ConstrainedValue{{Value: v}} }
	d := &dynamicConfig{
		values:       make(map[dynamicconfig.Key][]dynamicconfig.ConstrainedValue),
		eager:        one(500 * time.Millisecond),
		lazy:         one(time.Minute),
		namespaceKey: dynamicconfig.NamespaceCacheRefreshInterval.Key(),
	}
	for k, v := range dynamicValues() {
		d.values[k] = one(v)
	}
	return d
}

// GetValue implements dynamicconfig.Client.
func (d *dynamicConfig) GetValue(key dynamicconfig.Key) []dynamicconfig.ConstrainedValue {
	if key == d.namespaceKey {
		if d.settled.Load() {
			return d.lazy
		}
		return d.eager
	}
	return d.values[key]
}

func dynamicValues() map[dynamicconfig.Key]any {
	return map[dynamicconfig.Key]any{
		// One machine, one user of the engine: limits meant for tenants of a shared cluster only get in the way.
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key():        1000,
		dynamicconfig.FrontendMaxNamespaceRPSPerInstance.Key():                  20000,
		dynamicconfig.FrontendRPS.Key():                                         20000,
		dynamicconfig.FrontendMaxConcurrentLongRunningRequestsPerInstance.Key(): 20000,

		dynamicconfig.EnableEagerWorkflowStart.Key(): true,

		// A task queue in one piece: with the default of four partitions every poller waits on one of four, and tasks
		// are forwarded between them.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,

		// Goroutines that would only wait for the one connection.
		dynamicconfig.TransferProcessorSchedulerWorkerCount.Key():    32,
		dynamicconfig.TimerProcessorSchedulerWorkerCount.Key():       32,
		dynamicconfig.VisibilityProcessorSchedulerWorkerCount.Key():  8,
		dynamicconfig.MemoryTimerProcessorSchedulerWorkerCount.Key(): 8,

		// There is no other cluster to replicate from.
		dynamicconfig.ReplicationProcessorSchedulerWorkerCount.Key():            1,
		dynamicconfig.ReplicationLowPriorityProcessorSchedulerWorkerCount.Key(): 1,

		// A cached workflow costs about 65 kB; one that was evicted costs ten selects when it wakes.
		dynamicconfig.HistoryCacheHostLevelMaxSize.Key(): 2048,
		dynamicconfig.HistoryCacheTTL.Key():              15 * time.Minute,
		dynamicconfig.HistoryCacheBackgroundEvict.Key(): map[string]any{
			"Enabled": true, "LoopInterval": time.Minute, "MaxEntryPerCall": 1024,
		},

		// What is done is struck off within seconds. The default of 30 s is meant for servers that hardly ever die: all that
		// was done since is done again at the next start, ahead of what is new, and with a kill every ten seconds it never is
		// struck off at all. One delete each costs nothing while nothing happens.
		dynamicconfig.TransferProcessorUpdateAckInterval.Key():   2 * time.Second,
		dynamicconfig.TimerProcessorUpdateAckInterval.Key():      2 * time.Second,
		dynamicconfig.VisibilityProcessorUpdateAckInterval.Key(): 5 * time.Second,
		dynamicconfig.MatchingTaskDeleteInterval.Key():           2 * time.Second,

		// Housekeeping at the pace of one machine.
		dynamicconfig.ClusterMetadataRefreshInterval.Key():        10 * time.Minute,
		dynamicconfig.MatchingNexusEndpointsRefreshInterval.Key(): 10 * time.Minute,
		dynamicconfig.PersistenceHealthSignalMetricsEnabled.Key(): false,
		dynamicconfig.HistoryHealthSignalMetricsEnabled.Key():     false,

		// The history and task queue scavengers clean up what a kill may leave behind, twice a day; few pollers do.
		dynamicconfig.WorkerScannerMaxConcurrentActivityTaskPollers.Key():     1,
		dynamicconfig.WorkerScannerMaxConcurrentWorkflowTaskPollers.Key():     2,
		dynamicconfig.WorkerParentCloseMaxConcurrentActivityTaskPollers.Key(): 1,
		dynamicconfig.WorkerParentCloseMaxConcurrentWorkflowTaskPollers.Key(): 2,
		dynamicconfig.BuildIdScavengerEnabled.Key():                           false,
		dynamicconfig.ExecutionsScannerEnabled.Key():                          false,
		dynamicconfig.WorkerPerNamespaceWorkerOptions.Key(): sdkworker.Options{
			MaxConcurrentWorkflowTaskPollers: 2,
			MaxConcurrentActivityTaskPollers: 2,
		},
		dynamicconfig.WorkerStickyCacheSize.Key(): 256,
	}
}
