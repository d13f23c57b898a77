//! The watches of the API server and where their news go.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use api::watch::{Closed, watch};
use api::{EndpointSlice, Event, Node, Pod, Scope, Service};
use kube::Client;
use tokio::sync::mpsc::UnboundedSender;

use crate::health;
use crate::metrics::Metrics;
use crate::proxy;
use crate::run::News;

/// Starts the watches. They go on until the process ends or nobody listens.
pub(crate) fn start(
    client: &Client,
    core: UnboundedSender<News>,
    proxy: Sender<proxy::Message>,
    status: &health::Shared,
    metrics: &Arc<Metrics>,
) {
    tokio::spawn(watch::<Node>(
        client.clone(),
        Scope::default(),
        move |event| core.send(News::Node(event)).map_err(|_| Closed),
    ));
    let services = proxy.clone();
    let (service_metrics, slice_metrics) = (metrics.clone(), metrics.clone());
    let (service_status, slice_status) = (status.clone(), status.clone());
    tokio::spawn(watch::<Service>(
        client.clone(),
        for_proxies(),
        move |event: Event<Service>| {
            if !matches!(event, Event::Synced) {
                service_metrics.service_changed();
                service_status.lock().changes.queue(Instant::now());
            }
            services
                .send(proxy::Message::Service(event))
                .map_err(|_| Closed)
        },
    ));
    tokio::spawn(watch::<EndpointSlice>(
        client.clone(),
        for_proxies(),
        move |event: Event<EndpointSlice>| {
            if !matches!(event, Event::Synced) {
                slice_metrics.slice_changed();
                slice_status.lock().changes.queue(Instant::now());
            }
            proxy.send(proxy::Message::Slice(event)).map_err(|_| Closed)
        },
    ));
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
