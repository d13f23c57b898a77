//! Metrics, named as CoreDNS names its own where they mean the same.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl Transport {
    fn index(self) -> usize {
        match self {
            Self::Udp => 0,
            Self::Tcp => 1,
        }
    }
}

const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
const FAMILIES: [&str; 2] = ["1", "2"];
const TYPES: [&str; 6] = ["A", "AAAA", "SRV", "PTR", "CNAME", "other"];
const CODES: [&str; 7] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other",
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    proto: &'static str,
    family: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    rcode: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ToLabels {
    to: String,
}

/// All of them. The counters of every question are looked up once, here.
#[derive(Debug)]
pub struct Metrics {
    request_family: Family<RequestLabels, Counter>,
    requests: Vec<Counter>,
    response_family: Family<CodeLabels, Counter>,
    responses: Vec<Counter>,
    duration: Histogram,
    /// Answers found in the cache, that say something exists.
    pub cache_hits: Counter,
    /// Answers found in the cache, that say something does not exist.
    pub cache_denials: Counter,
    cache_hit_family: Family<KindLabels, Counter>,
    /// Questions not found in the cache.
    pub cache_misses: Counter,
    /// Answers given past their time.
    pub cache_stale: Counter,
    /// Answers refreshed before their time was over.
    pub cache_prefetch: Counter,
    /// Bytes of answers in the cache.
    pub cache_bytes: Gauge<i64, AtomicI64>,
    /// Answers in the cache.
    pub cache_entries: Gauge<i64, AtomicI64>,
    forwards: Family<ToLabels, Counter>,
    health_failures: Family<ToLabels, Counter>,
    /// Questions refused since too many waited for upstream servers.
    pub too_many: Counter,
    /// Questions not answered since their client asked too many.
    pub limited: Counter,
    /// Questions answered for a whole search list at once.
    pub completed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let request_family = Family::<RequestLabels, Counter>::default();
        let mut requests = Vec::new();
        for proto in TRANSPORTS {
            for family in FAMILIES {
                for kind in TYPES {
                    let labels = RequestLabels {
                        proto,
                        family,
                        r#type: kind,
                    };
                    requests.push(request_family.get_or_create(&labels).clone());
                }
            }
        }
        let response_family = Family::<CodeLabels, Counter>::default();
        let responses = CODES
            .map(|rcode| response_family.get_or_create(&CodeLabels { rcode }).clone())
            .to_vec();
        let cache_hit_family = Family::<KindLabels, Counter>::default();
        let hits = |kind| {
            cache_hit_family
                .get_or_create(&KindLabels { r#type: kind })
                .clone()
        };
        Self {
            requests,
            request_family,
            responses,
            response_family,
            // 16 µs to half a second, and more.
            duration: Histogram::new(exponential_buckets(0.000_016, 2.0, 16)),
            cache_hits: hits("success"),
            cache_denials: hits("denial"),
            cache_hit_family,
            cache_misses: Counter::default(),
            cache_stale: Counter::default(),
            cache_prefetch: Counter::default(),
            cache_bytes: Gauge::default(),
            cache_entries: Gauge::default(),
            forwards: Family::default(),
            health_failures: Family::default(),
            too_many: Counter::default(),
            limited: Counter::default(),
            completed: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes them known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "coredns_dns_requests",
            "Questions received, by transport, family (1: IPv4, 2: IPv6) and type",
            self.request_family.clone(),
        );
        registry.register(
            "coredns_dns_responses",
            "Answers given, by response code",
            self.response_family.clone(),
        );
        registry.register(
            "coredns_dns_request_duration_seconds",
            "How long questions took",
            self.duration.clone(),
        );
        registry.register(
            "coredns_cache_hits",
            "Questions answered from the cache",
            self.cache_hit_family.clone(),
        );
        registry.register(
            "coredns_cache_misses",
            "Questions the cache had no answer to",
            self.cache_misses.clone(),
        );
        registry.register(
            "coredns_cache_served_stale",
            "Answers given past their time since upstream servers failed",
            self.cache_stale.clone(),
        );
        registry.register(
            "coredns_cache_prefetch",
            "Answers refreshed before their time was over",
            self.cache_prefetch.clone(),
        );
        registry.register(
            "coredns_cache_entries",
            "Answers in the cache",
            self.cache_entries.clone(),
        );
        registry.register(
            "podwire_dns_cache_bytes",
            "Bytes of answers in the cache",
            self.cache_bytes.clone(),
        );
        registry.register(
            "coredns_forward_requests",
            "Questions sent to upstream servers",
            self.forwards.clone(),
        );
        registry.register(
            "coredns_forward_healthcheck_failures",
            "Health checks upstream servers failed",
            self.health_failures.clone(),
        );
        registry.register(
            "coredns_forward_max_concurrent_rejects",
            "Questions refused since too many waited for upstream servers",
            self.too_many.clone(),
        );
        registry.register(
            "podwire_dns_rate_limited",
            "Questions not answered since their client asked too many",
            self.limited.clone(),
        );
        registry.register(
            "podwire_dns_search_completed",
            "Questions answered for the client's whole search list",
            self.completed.clone(),
        );
    }

    /// A question came.
    pub fn request(&self, transport: Transport, is_ipv4: bool, kind: RecordType) {
        let kind = match kind {
            RecordType::A => 0,
            RecordType::AAAA => 1,
            RecordType::SRV => 2,
            RecordType::PTR => 3,
            RecordType::CNAME => 4,
            _ => 5,
        };
        let family = usize::from(!is_ipv4);
        let index = (transport.index() * FAMILIES.len() + family) * TYPES.len() + kind;
        self.requests[index].inc();
    }

    /// A question was answered.
    pub fn response(&self, code: ResponseCode, took: Duration) {
        let index = match code {
            ResponseCode::NoError => 0,
            ResponseCode::FormErr => 1,
            ResponseCode::ServFail => 2,
            ResponseCode::NXDomain => 3,
            ResponseCode::NotImp => 4,
            ResponseCode::Refused => 5,
            _ => 6,
        };
        self.responses[index].inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A question was sent to an upstream server.
    pub fn forward(&self, to: std::net::SocketAddr) {
        let labels = ToLabels { to: to.to_string() };
        self.forwards.get_or_create(&labels).inc();
    }

    /// An upstream server failed a health check.
    pub fn health_failure(&self, to: std::net::SocketAddr) {
        let labels = ToLabels { to: to.to_string() };
        self.health_failures.get_or_create(&labels).inc();
    }
}
