//! Health-check node ports: what a load balancer asks to learn whether this
//! node has endpoints of a Service whose external traffic policy is `Local`.
//!
//! Answers as kube-proxy does (`pkg/proxy/healthcheck/service_health.go`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::HeaderValue;
use serde_json::json;
use services::ServiceName;
use services::table::HealthCheck;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::event_writer::{About, Recorder, Warning};
use crate::health;
use crate::http::{self as web, Response};

/// The header with the number of endpoints.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";
/// Before a port that is taken is tried again: nothing tells when it is free.
const AGAIN: Duration = Duration::from_secs(30);

/// What is to be answered, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The Services.
    pub(crate) checks: Arc<BTreeMap<ServiceName, HealthCheck>>,
    /// Addresses of the node at which node ports answer.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Wanted {
    /// Where to listen, and for which Service. Of two Services with one port
    /// the first by name has it.
    fn listeners(&self) -> BTreeMap<SocketAddr, &ServiceName> {
        let mut listeners = BTreeMap::new();
        for (name, check) in &*self.checks {
            for address in &self.addresses {
                listeners
                    .entry(SocketAddr::new(*address, check.port))
                    .or_insert(name);
            }
        }
        listeners
    }
}

/// A listener; closed when dropped.
struct Open {
    service: ServiceName,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens and closes ports as it is told, until nobody tells it any more.
pub(crate) async fn run(
    mut wanted: watch::Receiver<Wanted>,
    status: health::Shared,
    events: Recorder,
) {
    let mut open: BTreeMap<SocketAddr, Open> = BTreeMap::new();
    let mut failed: BTreeMap<SocketAddr, ServiceName> = BTreeMap::new();
    loop {
        let listeners: BTreeMap<SocketAddr, ServiceName> = {
            let wanted = wanted.borrow_and_update();
            let listeners = wanted.listeners().into_iter();
            listeners.map(|(at, name)| (at, name.clone())).collect()
        };
        open.retain(|at, open| listeners.get(at) == Some(&open.service));
        failed.retain(|at, service| listeners.get(at) == Some(service));
        for (at, service) in listeners {
            if open.contains_key(&at) {
                continue;
            }
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    failed.remove(&at);
                    let task = tokio::spawn(serve(
                        listener,
                        service.clone(),
                        wanted.clone(),
                        status.clone(),
                    ));
                    open.insert(at, Open { service, task });
                }
                // Said already.
                Err(_) if failed.contains_key(&at) => {}
                Err(error) => {
                    events.warn(Warning {
                        about: About::service(&service),
                        reason: "FailedToStartServiceHealthcheck",
                        message: format!(
                            "cannot answer health checks at {at}: {error}; load balancers will \
                             send nothing to this node until the port is free"
                        ),
                    });
                    failed.insert(at, service);
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(AGAIN), if !failed.is_empty() => {}
        }
    }
}

async fn serve(
    listener: TcpListener,
    service: ServiceName,
    wanted: watch::Receiver<Wanted>,
    status: health::Shared,
) {
    web::listen(listener, move |_| {
        let live = status.lock().is_live(Instant::now());
        let check = wanted.borrow().checks.get(&service).copied();
        let endpoints = check.map_or(0, |check| check.local_endpoints);
        std::future::ready(answer(&service, endpoints, live))
    })
    .await;
}

fn answer(service: &ServiceName, endpoints: usize, live: bool) -> Response {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": live,
    });
    let code = match endpoints > 0 && live {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = web::json(code, body.to_string());
    let headers = response.headers_mut();
    headers.insert(WEIGHT, HeaderValue::from(endpoints));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::endpoints(2, true, 200)]
    #[case::none(0, true, 503)]
    #[case::stuck(2, false, 503)]
    fn only_a_node_with_endpoints_and_a_working_proxy_gets_traffic(
        #[case] endpoints: usize,
        #[case] live: bool,
        #[case] code: u16,
    ) {
        let response = answer(&ServiceName::new("shop", "web"), endpoints, live);
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()[WEIGHT], endpoints.to_string().as_str());
    }

    fn wanted(checks: &[(&str, u16)], addresses: &[&str]) -> Wanted {
        let checks = checks.iter().map(|(name, port)| {
            let check = HealthCheck {
                port: *port,
                local_endpoints: 1,
            };
            (ServiceName::new("shop", *name), check)
        });
        Wanted {
            checks: Arc::new(checks.collect()),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn each_address_listens_and_a_port_claimed_twice_has_one_holder() {
        let wanted = wanted(&[("b", 30000), ("a", 30000)], &["192.0.2.1", "2001:db8::1"]);
        let listeners: Vec<String> = wanted
            .listeners()
            .iter()
            .map(|(at, name)| format!("{at} {name}"))
            .collect();
        assert_eq!(
            listeners,
            ["192.0.2.1:30000 shop/a", "[2001:db8::1]:30000 shop/a"]
        );
    }

    /// Waits until a connection succeeds, or until it does not.
    async fn until(at: SocketAddr, reachable: bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while tokio::net::TcpStream::connect(at).await.is_ok() != reachable {
            assert!(
                Instant::now() < deadline,
                "{at} should be open: {reachable}"
            );
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn ports_open_and_close_as_wanted_and_a_taken_one_is_an_event() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let (events, mut written) = Recorder::new();
        let (tell, told) = watch::channel(Wanted::default());
        tokio::spawn(run(told, health::Shared::default(), events));
        let checks = [("web", at.port()), ("late", taken_port)];
        tell.send_replace(wanted(&checks, &["127.0.0.1"]));
        let event = written.recv().await.unwrap();
        assert_eq!(event.about, About::Service("shop".into(), "late".into()));
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        until(at, true).await;
        tell.send_replace(Wanted::default());
        until(at, false).await;
    }
}
