//! Numbers for Prometheus. Those that mean the same as one of kube-proxy's have
//! its name; the others begin with `podwire_`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use linux::conntrack::Losses;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Seconds = Gauge<f64, AtomicU64>;

/// The label of answers to health checks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

/// All there are. Each is its own lock-free cell.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    dns: Option<Arc<dns::Shared>>,
    sync: Histogram,
    full_sync: Histogram,
    partial_sync: Histogram,
    programming: Histogram,
    last_sync: Seconds,
    last_queued: Seconds,
    /// Changes of Services, on their way into the kernel.
    pub(crate) services_pending: Gauge,
    services_total: Counter,
    /// Changes of slices, on their way into the kernel.
    pub(crate) slices_pending: Gauge,
    slices_total: Counter,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
    /// Applications of Services that failed.
    pub(crate) sync_failures: Counter,
    /// Whether pods may come: 1 or 0.
    pub(crate) ready: Gauge,
    /// Things not as they should be.
    pub(crate) problems: Gauge,
    /// Other nodes known.
    pub(crate) peers: Gauge,
    /// Routes wanted.
    pub(crate) routes: Gauge,
    /// Elements added to and deleted from the kernel's Service maps.
    pub(crate) elements: Counter,
    /// Bursts of changes applied, of routes and of Services.
    pub(crate) applications: Counter,
    /// What others had damaged and was put right.
    pub(crate) repairs: Counter,
    /// Connections tracked, and the most there may be.
    pub(crate) connections: (Gauge, Gauge),
    /// Packets conntrack could not enter, and those it dropped.
    losses: (Counter, Counter),
}

impl Metrics {
    /// With those of the node's DNS, if it has one.
    pub(crate) fn new(dns: Option<Arc<dns::Shared>>) -> Metrics {
        // 1 ms to 16 s, as kube-proxy's.
        let durations = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let metrics = Metrics {
            registry: Registry::default(),
            dns,
            sync: durations(),
            full_sync: durations(),
            partial_sync: durations(),
            programming: Histogram::new(programming_durations()),
            last_sync: Seconds::default(),
            last_queued: Seconds::default(),
            services_pending: Gauge::default(),
            services_total: Counter::default(),
            slices_pending: Gauge::default(),
            slices_total: Counter::default(),
            healthz: Family::default(),
            livez: Family::default(),
            sync_failures: Counter::default(),
            ready: Gauge::default(),
            problems: Gauge::default(),
            peers: Gauge::default(),
            routes: Gauge::default(),
            elements: Counter::default(),
            applications: Counter::default(),
            repairs: Counter::default(),
            connections: (Gauge::default(), Gauge::default()),
            losses: (Counter::default(), Counter::default()),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Metrics {
        let of_rules = |name: &str| format!("kubeproxy_sync_proxy_rules_{name}");
        let registry = &mut self.registry;
        if let Some(dns) = &self.dns {
            dns.metrics().register(registry);
        }
        registry.register(
            of_rules("duration_seconds"),
            "How long applications of Services took",
            self.sync.clone(),
        );
        registry.register(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "How long applications of Services took that compared everything",
            self.full_sync.clone(),
        );
        registry.register(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "How long applications of Services took that looked at what had changed",
            self.partial_sync.clone(),
        );
        registry.register(
            "kubeproxy_network_programming_duration_seconds",
            "How long changes of endpoints took from their trigger until they were in force",
            self.programming.clone(),
        );
        registry.register(
            of_rules("last_timestamp_seconds"),
            "When Services were last applied",
            self.last_sync.clone(),
        );
        registry.register(
            of_rules("last_queued_timestamp_seconds"),
            "When a change of Services was last queued",
            self.last_queued.clone(),
        );
        registry.register(
            of_rules("service_changes_pending"),
            "Changes of Services that are not in force yet",
            self.services_pending.clone(),
        );
        registry.register(
            of_rules("service_changes"),
            "Changes of Services",
            self.services_total.clone(),
        );
        registry.register(
            of_rules("endpoint_changes_pending"),
            "Changes of EndpointSlices that are not in force yet",
            self.slices_pending.clone(),
        );
        registry.register(
            of_rules("endpoint_changes"),
            "Changes of EndpointSlices",
            self.slices_total.clone(),
        );
        registry.register(
            "kubeproxy_proxy_healthz",
            "Answers at /healthz",
            self.healthz.clone(),
        );
        registry.register(
            "kubeproxy_proxy_livez",
            "Answers at /livez",
            self.livez.clone(),
        );
        registry.register(
            "podwire_service_sync_failures",
            "Applications of Services that failed and are tried again",
            self.sync_failures.clone(),
        );
        registry.register("podwire_ready", "Whether pods may come", self.ready.clone());
        registry.register(
            "podwire_problems",
            "Things not as they should be; podwire inspect status names them",
            self.problems.clone(),
        );
        registry.register("podwire_peers", "Other nodes known", self.peers.clone());
        registry.register("podwire_routes", "Routes wanted", self.routes.clone());
        registry.register(
            "podwire_service_elements",
            "Elements or rules of Services added and deleted",
            self.elements.clone(),
        );
        registry.register(
            "podwire_applications",
            "Bursts of changes applied, of routes and of Services",
            self.applications.clone(),
        );
        registry.register(
            "podwire_service_repairs",
            "Rules of Services that others had damaged and podwire put right",
            self.repairs.clone(),
        );
        registry.register(
            "podwire_conntrack_entries",
            "Connections the kernel tracks",
            self.connections.0.clone(),
        );
        registry.register(
            "podwire_conntrack_limit",
            "The most connections the kernel may track",
            self.connections.1.clone(),
        );
        registry.register(
            "podwire_conntrack_insert_failed",
            "Connections conntrack did not enter: another had their addresses and ports",
            self.losses.0.clone(),
        );
        registry.register(
            "podwire_conntrack_dropped",
            "Packets conntrack dropped: for that, or its table was full, or memory short",
            self.losses.1.clone(),
        );
        self
    }

    /// A change of a Service was queued.
    pub(crate) fn service_changed(&self) {
        self.services_total.inc();
        self.services_pending.inc();
        self.last_queued.set(now());
    }

    /// A change of a slice was queued.
    pub(crate) fn slice_changed(&self) {
        self.slices_total.inc();
        self.slices_pending.inc();
        self.last_queued.set(now());
    }

    /// Services were applied.
    pub(crate) fn synced(&self, took: Duration, full: bool) {
        let seconds = took.as_secs_f64();
        self.sync.observe(seconds);
        match full {
            true => self.full_sync.observe(seconds),
            false => self.partial_sync.observe(seconds),
        }
        self.last_sync.set(now());
    }

    /// A change of endpoints is in force so many seconds after its trigger.
    pub(crate) fn programmed(&self, seconds: f64) {
        self.programming.observe(seconds);
    }

    /// What conntrack lost so far: the kernel's own counters.
    pub(crate) fn lost(&self, losses: Losses) {
        let Losses {
            insert_failed,
            dropped,
        } = losses;
        self.losses.0.inner().store(insert_failed, Relaxed);
        self.losses.1.inner().store(dropped, Relaxed);
    }

    /// A health check was answered.
    pub(crate) fn health_asked(&self, path: &str, status: StatusCode) {
        let family = match path {
            "/healthz" => &self.healthz,
            "/livez" => &self.livez,
            _ => return,
        };
        let code = status.as_u16();
        family.get_or_create(&Code { code }).inc();
    }

    /// All of them in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(dns) = &self.dns {
            dns.measure();
        }
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Upper ends in seconds, as kube-proxy's: 0.25, 0.5, every second to 59, every
/// five to 115, every thirty to 300.
fn programming_durations() -> impl Iterator<Item = f64> {
    let whole = (1..60)
        .chain((60..120).step_by(5))
        .chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(whole.map(f64::from))
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_kube_proxys_names_where_they_mean_the_same() {
        let metrics = Metrics::new(None);
        metrics.service_changed();
        metrics.slice_changed();
        metrics.synced(Duration::from_millis(3), false);
        metrics.programmed(1.5);
        metrics.health_asked("/healthz", StatusCode::SERVICE_UNAVAILABLE);
        let text = metrics.text();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"1.0\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"2.0\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\"} 1",
            "kubeproxy_network_programming_duration_seconds_sum 1.5",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "podwire_ready 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
