//! Configuration of zone, forwarding and server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// Whether names like `10-200-1-5.default.pod.cluster.local` are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodRecords {
    /// They do not exist.
    #[default]
    Disabled,
    /// Any address in a namespace that exists: the name says what it is.
    Insecure,
    /// Only addresses of pods there are in the namespace.
    Verified,
}

/// What the server is asked to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's domain.
    pub domain: Name,
    /// Whether the cluster's domain is answered here. If not, this is a cache in
    /// front of another cluster DNS, reached like any upstream.
    pub authoritative: bool,
    /// Time to live of the records made here, in seconds.
    pub ttl: u32,
    /// Pod records.
    pub pods: PodRecords,
    /// Ranges of pod and Service addresses: reverse names in them are answered
    /// here, with NXDOMAIN where there is nothing.
    pub reverse: Vec<IpNet>,
    /// Where to listen, UDP and TCP. The first of each family also is the
    /// address of the zone's name server in NS answers.
    pub listen: Vec<SocketAddr>,
    /// Threads that answer UDP at most: there is one for each core the process may
    /// run on, with a socket of its own for each address.
    pub threads: usize,
    /// Walk the search list of known pods here.
    pub search_completion: bool,
    /// Questions a second each client may ask, and ten times as many at once; 0: no limit.
    pub client_rate: u32,
    /// Questions that take longer are logged.
    pub slow: Duration,
    /// Forwarding.
    pub forwarding: Forwarding,
}

/// How what is not ours is resolved.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// Servers asked for names below no stub domain. Empty: such names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Domains with servers of their own; the longest match counts.
    pub stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Order in which servers are asked.
    pub policy: Policy,
    /// How long one server is waited for.
    pub timeout: Duration,
    /// How many questions wait for upstreams at once; more are answered SERVFAIL.
    pub concurrent: usize,
    /// The cache.
    pub cache: CacheLimits,
}

/// Order in which upstream servers are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In a new order each time.
    #[default]
    Random,
    /// In the order of the configuration: the next only when one fails.
    Sequential,
}

/// Limits of the cache.
#[derive(Clone, Debug)]
pub struct CacheLimits {
    /// Bytes of answers kept at most. 0: nothing is kept.
    pub bytes: usize,
    /// Answers with records are kept at most so long.
    pub longest: Duration,
    /// Negative answers are kept at most so long.
    pub longest_negative: Duration,
    /// Answers are kept at least so long, whatever their time to live.
    pub shortest: Duration,
    /// Refresh an answer that is asked for when less than a tenth of its time is left.
    pub prefetch: bool,
    /// Give an answer whose time is over while upstreams fail, at most so long after (RFC 8767).
    pub serve_stale: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            longest: Duration::from_secs(30),
            longest_negative: Duration::from_secs(30),
            shortest: Duration::from_secs(5),
            prefetch: false,
            serve_stale: Duration::ZERO,
        }
    }
}

impl Default for Forwarding {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            stubs: Vec::new(),
            policy: Policy::default(),
            timeout: Duration::from_secs(2),
            concurrent: 1000,
            cache: CacheLimits::default(),
        }
    }
}

impl Config {
    /// The configuration for the cluster domain `domain`, listening nowhere yet.
    #[must_use]
    pub fn new(domain: Name) -> Self {
        Self {
            domain,
            authoritative: true,
            ttl: 5,
            pods: PodRecords::default(),
            reverse: Vec::new(),
            listen: Vec::new(),
            threads: 16,
            search_completion: true,
            client_rate: 0,
            slow: Duration::from_secs(1),
            forwarding: Forwarding::default(),
        }
    }

    /// Addresses of the zone's name server: the first listened at of each family.
    #[must_use]
    pub fn server_addresses(&self) -> Vec<IpAddr> {
        let first = |v4: bool| {
            self.listen
                .iter()
                .map(SocketAddr::ip)
                .find(|address| address.is_ipv4() == v4)
        };
        first(true).into_iter().chain(first(false)).collect()
    }
}
