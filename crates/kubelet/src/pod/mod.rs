//! A pod's life on this node: volumes, namespaces, init containers, containers,
//! the end. Each pod has a worker; all workers share one thread.

mod container;
mod containers;
mod image;
mod report;
mod sandbox;
mod termination;
mod updates;
mod volumes;
mod worker;

use std::rc::Rc;

use k8s_openapi::api::core::v1 as k8s;
use tokio::sync::watch;

pub(crate) use worker::Worker;

use crate::Options;
use crate::cni::Network;
use crate::events::Recorder;
use crate::images::{self, Store};

/// What all pods of the node share.
pub(crate) struct Node {
    pub(crate) options: Options,
    pub(crate) client: kube::Client,
    pub(crate) store: Store,
    /// The network images are pulled from where it is not the kubelet's own.
    pub(crate) image_network: Option<images::Network>,
    pub(crate) recorder: Recorder,
    /// The network pods are connected to; none until one is configured.
    pub(crate) network: watch::Receiver<Option<Network>>,
    /// What containers can be allowed at most.
    pub(crate) capabilities: Vec<String>,
    /// Whether containers can be given cpu and memory limits.
    pub(crate) limits: bool,
}

/// What the API says of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    /// As last seen.
    pub(crate) pod: Rc<k8s::Pod>,
    /// The API has forgotten it.
    pub(crate) gone: bool,
}
