//! The one shared view of the cluster: a mirror per kind, used by all
//! controllers.

use crate::events::Recorder;
use crate::mirror::Mirror;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Mirrors of the kinds the controllers work with.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) nodes: Arc<Mirror<Node>>,
    pub(crate) pods: Arc<Mirror<Pod>>,
    pub(crate) services: Arc<Mirror<Service>>,
    pub(crate) slices: Arc<Mirror<EndpointSlice>>,
    pub(crate) replica_sets: Arc<Mirror<ReplicaSet>>,
    pub(crate) deployments: Arc<Mirror<Deployment>>,
    pub(crate) stateful_sets: Arc<Mirror<StatefulSet>>,
    pub(crate) daemon_sets: Arc<Mirror<DaemonSet>>,
    pub(crate) revisions: Arc<Mirror<ControllerRevision>>,
    pub(crate) namespaces: Arc<Mirror<Namespace>>,
    pub(crate) service_accounts: Arc<Mirror<ServiceAccount>>,
    pub(crate) leases: Arc<Mirror<Lease>>,
    pub(crate) events: Arc<Mirror<Event>>,
}

impl Cluster {
    /// Empty mirrors; nothing is asked of the API server yet.
    pub(crate) fn new(client: Client, recorder: Recorder) -> Arc<Self> {
        Arc::new(Self {
            recorder,
            nodes: Mirror::cluster(&client),
            pods: Mirror::namespaced(&client),
            services: Mirror::namespaced(&client),
            slices: Mirror::namespaced(&client),
            replica_sets: Mirror::namespaced(&client),
            deployments: Mirror::namespaced(&client),
            stateful_sets: Mirror::namespaced(&client),
            daemon_sets: Mirror::namespaced(&client),
            revisions: Mirror::namespaced(&client),
            namespaces: Mirror::cluster(&client),
            service_accounts: Mirror::namespaced(&client),
            leases: Mirror::namespaced(&client),
            events: Mirror::namespaced(&client),
            client,
        })
    }

    /// Starts one watch per kind.
    pub(crate) fn follow(&self, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.nodes.clone().follow());
        tasks.spawn(self.pods.clone().follow());
        tasks.spawn(self.services.clone().follow());
        tasks.spawn(self.slices.clone().follow());
        tasks.spawn(self.replica_sets.clone().follow());
        tasks.spawn(self.deployments.clone().follow());
        tasks.spawn(self.stateful_sets.clone().follow());
        tasks.spawn(self.daemon_sets.clone().follow());
        tasks.spawn(self.revisions.clone().follow());
        tasks.spawn(self.namespaces.clone().follow());
        tasks.spawn(self.service_accounts.clone().follow());
        tasks.spawn(self.leases.clone().follow());
        tasks.spawn(self.events.clone().follow());
    }

    /// Waits until every mirror has had its first complete list.
    pub(crate) async fn complete(&self) {
        self.nodes.complete().await;
        self.pods.complete().await;
        self.services.complete().await;
        self.slices.complete().await;
        self.replica_sets.complete().await;
        self.deployments.complete().await;
        self.stateful_sets.complete().await;
        self.daemon_sets.complete().await;
        self.revisions.complete().await;
        self.namespaces.complete().await;
        self.service_accounts.complete().await;
        self.leases.complete().await;
        self.events.complete().await;
    }
}
