package task

import (
	"encoding/json"
	"strings"

	"gopkg.in/yaml.v3"
)

var lbPolicies = []string{"round_robin", "least_load", "instance_aware_least_load"}

var (
	serviceObject       *object[Service]
	probeObject         *object[Probe]
	loadBalancerObject  *object[Service]
	replicaPolicyObject *object[ReplicaPolicy]
	tlsObject           *object[TLS]
	poolObject          *object[Pool]
)

func buildServing() {
	seconds := func(name, doc, def string, at func(*Probe) *float64) field[Probe] {
		return positiveField(name, doc, at).defaults(def)
	}
	probeObject = &object[Probe]{
		title: "service.readiness_probe", doc: "When a replica is ready: it answers this request with 200.",
		fields: []field[Probe]{
			textField("path", "Path of the request, starting with /.", func(p *Probe) *string { return &p.Path }),
			seconds("initial_delay_seconds", "How long a new replica may fail.", "1200", func(p *Probe) *float64 { return &p.InitialDelaySec }),
			seconds("timeout_seconds", "Of one request.", "15", func(p *Probe) *float64 { return &p.TimeoutSec }),
			seconds("endpoint_probe_interval_seconds", "Between two requests.", "10", func(p *Probe) *float64 { return &p.IntervalSec }),
			seconds("consecutive_failure_threshold_timeout", "How long a ready replica may fail.", "180", func(p *Probe) *float64 { return &p.FailureThresholdTimeoutSec }),
			{
				name: "post_data", forms: "JSON text, or object", doc: "Makes the request a POST with this body.", schema: jsOr(jsText(), jsMap()),
				read: func(v val, p *Probe) {
					if v.n.Kind == yaml.MappingNode || v.n.Kind == yaml.SequenceNode {
						b, err := json.Marshal(v.plain())
						if err != nil {
							v.failErr(err)
						}
						p.PostData = string(b)
						return
					}
					s, ok := v.str()
					if !ok {
						return
					}
					if err := jsonText(s); err != nil {
						v.failErr(err)
						return
					}
					p.PostData = s
				},
				write: func(p *Probe) any { return optional(p.PostData) },
			},
			textMapField("headers", "Headers of the request.", func(p *Probe) *map[string]string { return &p.Headers }),
		},
	}
	loadBalancerObject = &object[Service]{
		title: "service.load_balancer", doc: "Settings of the load balancer.",
		fields: []field[Service]{
			positiveField("stream_timeout_seconds", "How long a response may be silent.", func(s *Service) *float64 { return &s.StreamTimeoutSec }).defaults("120"),
		},
	}
	replicaPolicyObject = &object[ReplicaPolicy]{
		title: "service.replica_policy", doc: "How many replicas there are.",
		fields: []field[ReplicaPolicy]{
			intField("min_replicas", "Fewest replicas; needed.", 0, maxInt, func(r *ReplicaPolicy) *int { return &r.MinReplicas }).with(func(f *field[ReplicaPolicy]) {
				f.write = func(r *ReplicaPolicy) any { return r.MinReplicas }
			}),
			intPtrField("max_replicas", "Most replicas.", 0, maxInt, func(r *ReplicaPolicy) **int { return &r.MaxReplicas }).defaults("as min_replicas"),
			{
				name: "target_qps_per_replica", forms: "number, or a map `GPU[:n]` to number", doc: "Requests per second that one replica takes.", schema: jsOr(jsNum(), jsMapOf(jsNum())),
				read: readTargetQPS,
				write: func(r *ReplicaPolicy) any {
					if len(r.TargetQPSByAccelerator) > 0 {
						m := map[string]any{}
						for k, q := range r.TargetQPSByAccelerator {
							m[k] = q
						}
						return m
					}
					return optional(r.TargetQPSPerReplica)
				},
			},
			intPtrField("num_overprovision", "Replicas on top.", 0, maxInt, func(r *ReplicaPolicy) **int { return &r.NumOverprovision }),
			numberPtrField("upscale_delay_seconds", "How long load must be high before replicas are added.", func(r *ReplicaPolicy) **float64 { return &r.UpscaleDelaySec }).defaults("300"),
			numberPtrField("downscale_delay_seconds", "How long load must be low before replicas are removed.", func(r *ReplicaPolicy) **float64 { return &r.DownscaleDelaySec }).defaults("1200"),
			intField("base_ondemand_fallback_replicas", "Replicas that are always on-demand.", 0, maxInt, func(r *ReplicaPolicy) *int { return &r.BaseOndemandFallbackReplicas }).defaults("0"),
			boolField("dynamic_ondemand_fallback", "On-demand replicas while spot ones are not ready.", func(r *ReplicaPolicy) *bool { return &r.DynamicOndemandFallback }),
			wordField("spot_placer", "How spot replicas are spread.", []string{"dynamic_fallback"}, func(r *ReplicaPolicy) *string { return &r.SpotPlacer }),
		},
	}
	tlsObject = &object[TLS]{
		title: "service.tls", doc: "Certificate of the endpoint.",
		fields: []field[TLS]{
			textField("keyfile", "File of the private key; needed.", func(t *TLS) *string { return &t.Keyfile }),
			textField("certfile", "File of the certificate; needed.", func(t *TLS) *string { return &t.Certfile }),
		},
	}
	serviceObject = &object[Service]{
		title: "service", doc: "Makes the task a replicated service behind one address.",
		fields: []field[Service]{
			{
				name: "readiness_probe", forms: "path, or object", def: "/", doc: "When a replica is ready.", schema: jsOr(jsText(), jsRef("service.readiness_probe")),
				read: func(v val, s *Service) {
					if v.n.Kind == yaml.MappingNode {
						probeObject.read(v, &s.ReadinessProbe)
						if s.ReadinessProbe.Path == "" {
							v.fail("path is missing")
						}
					} else {
						s.ReadinessProbe.Path, _ = v.str()
					}
					if p := s.ReadinessProbe.Path; p != "" && !strings.HasPrefix(p, "/") {
						v.fail("the path %q must start with /", clip(p))
					}
				},
				write: func(s *Service) any {
					o := writeObject(probeObject, &s.ReadinessProbe)
					if m, ok := o.(omap); ok && len(m) == 1 && m[0].key == "path" {
						return s.ReadinessProbe.Path
					}
					return o
				},
			},
			{
				name: "load_balancer", forms: "object", doc: "Settings of the load balancer.", schema: jsRef("service.load_balancer"),
				read:  func(v val, s *Service) { loadBalancerObject.read(v, s) },
				write: func(s *Service) any { return writeObject(loadBalancerObject, s) },
			},
			intPtrField("replicas", "Fixed number of replicas; not with replica_policy.", 0, maxInt, func(s *Service) **int { return &s.Replicas }).defaults("1"),
			{
				name: "replica_policy", forms: "object", doc: "How many replicas there are.", schema: jsRef("service.replica_policy"),
				read: func(v val, s *Service) {
					s.Policy = &ReplicaPolicy{MinReplicas: -1}
					replicaPolicyObject.read(v, s.Policy)
					checkReplicaPolicy(v, s.Policy)
				},
				write: func(s *Service) any { return writeObject(replicaPolicyObject, s.Policy) },
			},
			wordField("load_balancing_policy", "Which replica gets a request.", lbPolicies, func(s *Service) *string { return &s.LoadBalancingPolicy }).defaults("least_load"),
			intField("ports", "Port that the replicas listen on.", 1, 65535, func(s *Service) *int { return &s.Port }).defaults("the single port of resources").with(func(f *field[Service]) {
				f.schema = jsOr(jsRange(1, 65535), jsPattern(`^\d+$`))
				f.read = readWith(func(s *Service) *int { return &s.Port }, parsePort)
			}),
			{
				name: "tls", forms: "object", doc: "Certificate of the endpoint.", schema: jsRef("service.tls"),
				read: func(v val, s *Service) {
					s.TLS = &TLS{}
					tlsObject.read(v, s.TLS)
					if s.TLS.Keyfile == "" || s.TLS.Certfile == "" {
						v.fail("needs keyfile and certfile")
					}
				},
				write: func(s *Service) any { return writeObject(tlsObject, s.TLS) },
			},
			boolField("pool", "Internal form of a pool.", func(s *Service) *bool { return &s.Pool }).with(func(f *field[Service]) { f.hidden = true }),
			intPtrField("workers", "Internal form of a pool.", 0, maxInt, func(s *Service) **int { return &s.Workers }).with(func(f *field[Service]) { f.hidden = true }),
		},
	}
	poolObject = &object[Pool]{
		title: "pool", doc: "Makes the task a pool of workers for managed jobs.",
		fields: []field[Pool]{
			intPtrField("workers", "Fixed number of workers, or the first number with autoscaling.", 0, maxInt, func(p *Pool) **int { return &p.Workers }),
			intPtrField("min_workers", "Fewest workers; needs max_workers.", 0, maxInt, func(p *Pool) **int { return &p.MinWorkers }),
			intPtrField("max_workers", "Most workers; needs min_workers.", 0, maxInt, func(p *Pool) **int { return &p.MaxWorkers }),
			intPtrField("queue_length_threshold", "Waiting jobs above which a worker is added.", 1, maxInt, func(p *Pool) **int { return &p.QueueLengthThreshold }).defaults("1"),
			numberPtrField("upscale_delay_seconds", "How long the queue must be long.", func(p *Pool) **float64 { return &p.UpscaleDelaySec }).defaults("300"),
			numberPtrField("downscale_delay_seconds", "How long the queue must be short.", func(p *Pool) **float64 { return &p.DownscaleDelaySec }).defaults("1200"),
		},
	}
}

func readTargetQPS(v val, r *ReplicaPolicy) {
	if v.n.Kind != yaml.MappingNode {
		if n, ok := v.number(0, true); ok {
			r.TargetQPSPerReplica = n
		}
		return
	}
	r.TargetQPSByAccelerator = map[string]float64{}
	v.each(func(key string, kv, c val) {
		if _, err := ParseAccelerator(key); err != nil {
			kv.failErr(err)
			return
		}
		if n, ok := c.number(0, true); ok {
			r.TargetQPSByAccelerator[key] = n
		}
	})
	if len(r.TargetQPSByAccelerator) == 0 {
		v.fail("names no accelerator")
	}
}

func checkReplicaPolicy(v val, r *ReplicaPolicy) {
	qps := r.TargetQPSPerReplica > 0 || len(r.TargetQPSByAccelerator) > 0
	switch {
	case r.MinReplicas < 0:
		v.fail("min_replicas is missing")
		r.MinReplicas = 0
	case r.MaxReplicas != nil && *r.MaxReplicas < r.MinReplicas:
		v.fail("max_replicas (%d) is less than min_replicas (%d)", *r.MaxReplicas, r.MinReplicas)
	case r.MaxReplicas != nil && *r.MaxReplicas != r.MinReplicas && !qps:
		v.fail("max_replicas differs from min_replicas, so target_qps_per_replica is needed")
	case qps && r.MaxReplicas == nil:
		v.fail("target_qps_per_replica needs max_replicas")
	}
}

func checkService(v val, s *Service) {
	byGPU := s.Policy != nil && len(s.Policy.TargetQPSByAccelerator) > 0
	aware := s.LoadBalancingPolicy == "instance_aware_least_load"
	switch {
	case s.Replicas != nil && s.Policy != nil:
		v.fail("replicas and replica_policy can't be combined; a fixed number is replica_policy: {min_replicas: N}")
	case s.Replicas != nil && s.Workers != nil:
		v.fail("replicas and workers can't be combined")
	case byGPU && !aware:
		v.fail("target_qps_per_replica by accelerator needs load_balancing_policy: instance_aware_least_load")
	case aware && !byGPU:
		v.fail("load_balancing_policy: instance_aware_least_load needs target_qps_per_replica by accelerator")
	}
}

func checkPool(v val, p *Pool) {
	switch {
	case p.Workers == nil && p.MinWorkers == nil && p.MaxWorkers == nil:
		v.fail("needs workers, or min_workers and max_workers")
	case p.MinWorkers != nil && p.MaxWorkers == nil:
		v.fail("min_workers needs max_workers")
	case p.MaxWorkers != nil && p.MinWorkers == nil:
		v.fail("max_workers needs min_workers")
	case p.MinWorkers != nil && *p.MinWorkers > *p.MaxWorkers:
		v.fail("min_workers (%d) is more than max_workers (%d)", *p.MinWorkers, *p.MaxWorkers)
	case p.QueueLengthThreshold != nil && p.MaxWorkers == nil:
		v.fail("queue_length_threshold needs min_workers and max_workers")
	}
}
