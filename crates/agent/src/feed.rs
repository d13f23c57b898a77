//! The watches of the API server and where their news go.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use api::watch::{Closed, watch};
use api::{EndpointSlice, Event, Key, Namespace, Node, Pod, Resource as _, Scope, Service};
use kube::Client;
use tokio::sync::mpsc::UnboundedSender;

use crate::dns::Dns;
use crate::health;
use crate::metrics::Metrics;
use crate::proxy;
use crate::run::News;

/// Whom the watches concern besides the loop and the proxy.
pub(crate) struct Watchers<'a> {
    /// This node.
    pub(crate) node: &'a str,
    /// Its DNS, if it has one.
    pub(crate) dns: Option<Arc<Dns>>,
    /// Where it is noted since when changes wait.
    pub(crate) status: &'a health::Shared,
    /// Where changes are counted.
    pub(crate) metrics: &'a Arc<Metrics>,
}

/// Starts the watches. They go on until the process ends or nobody listens.
///
/// DNS is told first: a Service's name resolves no later than its address answers.
pub(crate) fn start(
    client: &Client,
    core: UnboundedSender<News>,
    proxy: Sender<proxy::Message>,
    changed: Arc<proxy::Changed>,
    told: &Watchers<'_>,
) {
    tokio::spawn(watch::<Node>(
        client.clone(),
        Scope::default(),
        move |event| core.send(News::Node(event)).map_err(|_| Closed),
    ));
    let dns = told.dns.clone();
    let (service_metrics, slice_metrics) = (told.metrics.clone(), told.metrics.clone());
    let (service_status, slice_status) = (told.status.clone(), told.status.clone());
    let scope = match &dns {
        Some(_) => Scope::default(),
        None => for_proxies(),
    };
    let (to_proxy, zone) = (proxy.clone(), dns.clone());
    let services = changed.clone();
    tokio::spawn(watch::<Service>(
        client.clone(),
        scope.clone(),
        move |mut event: Event<Service>| {
            if !matches!(event, Event::Synced) {
                service_metrics.service_changed();
                service_status.lock().changes.queue(Instant::now());
            }
            if let Some(zone) = &zone {
                zone.service(&event);
                if let Event::Applied(service) = &mut event {
                    let mut ports = std::mem::take(&mut service.spec.ports);
                    ports.retain(|port| !zone.takes(service, port.port));
                    service.spec.ports = ports;
                }
            }
            let message = match parts(event) {
                None => Some(proxy::Message::ServicesSynced),
                Some((key, now)) => services.service(key, now),
            };
            let Some(message) = message else {
                // With the change it overtook it is one.
                service_metrics.services_pending.dec();
                return Ok(());
            };
            to_proxy.send(message).map_err(|_| Closed)
        },
    ));
    let zone = dns.clone();
    tokio::spawn(watch::<EndpointSlice>(
        client.clone(),
        scope,
        move |event: Event<EndpointSlice>| {
            if !matches!(event, Event::Synced) {
                slice_metrics.slice_changed();
                slice_status.lock().changes.queue(Instant::now());
            }
            if let Some(zone) = &zone {
                zone.slice(&event);
            }
            let message = match parts(unless_headless(event)) {
                None => Some(proxy::Message::SlicesSynced),
                Some((key, now)) => changed.slice(key, now),
            };
            let Some(message) = message else {
                slice_metrics.slices_pending.dec();
                return Ok(());
            };
            proxy.send(message).map_err(|_| Closed)
        },
    ));
    if let Some(dns) = dns {
        start_names(client, told.node, dns);
    }
}

/// Starts the watches that only DNS needs.
fn start_names(client: &Client, node: &str, dns: Arc<Dns>) {
    let zone = dns.clone();
    tokio::spawn(watch::<Namespace>(
        client.clone(),
        Scope::default(),
        move |event| {
            zone.namespace(&event);
            Ok(())
        },
    ));
    let scope = Scope {
        fields: match dns.all_pods {
            true => String::new(),
            false => format!("spec.nodeName={node}"),
        },
        ..Scope::default()
    };
    tokio::spawn(watch::<Pod>(client.clone(), scope, move |event| {
        dns.pod(&event);
        Ok(())
    }));
}

/// Which object an event is about, and what it is now if it is not gone; `None` where
/// it is about all of them.
fn parts<R: api::Resource>(event: Event<R>) -> Option<(Key, Option<R>)> {
    match event {
        Event::Applied(object) => Some((object.key(), Some(object))),
        Event::Deleted(key) => Some((key, None)),
        Event::Synced => None,
    }
}

/// A slice of a headless Service is gone, for a proxy. (A Service's own label is
/// looked at where it is translated.)
fn unless_headless(event: Event<EndpointSlice>) -> Event<EndpointSlice> {
    match event {
        Event::Applied(slice)
            if slice
                .metadata
                .label("service.kubernetes.io/headless")
                .is_some() =>
        {
            Event::Deleted(slice.key())
        }
        event => event,
    }
}

/// Starts the watch of pods, which few back ends need.
pub(crate) fn start_pods(client: &Client, core: UnboundedSender<News>) {
    tokio::spawn(watch::<Pod>(
        client.clone(),
        Scope::default(),
        move |event| core.send(News::Pod(event)).map_err(|_| Closed),
    ));
}

/// Services and slices that are for a proxy at all: headless ones are by far
/// the most endpoints of some clusters. The server leaves them out; one that
/// gets the label later arrives as deleted.
fn for_proxies() -> Scope {
    let labels = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
    Scope {
        labels: labels.into(),
        ..Scope::default()
    }
}
