// Package metrics shows the Status of replicas to Prometheus:
//
//	prometheus.MustRegister(metrics.New([]*replicator.Replicator{r}))
//	mux.Handle("/metrics", promhttp.Handler())
//
// Every metric has the label replica: the replica's name, or its id if it has none. Those of
// a peer have the label peer, too: its name, its id, or the address that is configured, the
// first of these that is known. Ports of connections are in no label.
//
// A whole fleet is equal if this is 1. While something is written, it is greater for
// moments:
//
//	count(count_values("sum", replicator_state_checksum))
//
// dashboard.json is a dashboard for Grafana, and alerts.yaml has rules for Prometheus.
//
// The package is a module of its own, so that programs that do without it do not depend on
// Prometheus.
package metrics
