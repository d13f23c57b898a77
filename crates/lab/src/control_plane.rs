//! The lab's control plane: the API server, and the controllers as its clients
//! in the same process.

use std::fs::File;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::Server;
use apiserver::log_source::FileLogs;
use controllers::ClusterCidr;
use ipnet::IpNet;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use linux::process::take_inherited;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{api_resource, message};
use crate::config::{Config, Dns, is_label};
use crate::paths::Paths;
use crate::publish::Publisher;
use crate::supervisor::LabFile;
use crate::underlay::API_PORT;

/// The command line, not for people.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The lab's name.
    #[arg(long)]
    name: String,
    /// The number of an open listener on the underlay; may be repeated.
    #[arg(long)]
    underlay: Vec<i32>,
    /// The number of the open listener on loopback.
    #[arg(long)]
    loopback: i32,
    /// The number of an open listener of a published port; may be repeated.
    #[arg(long)]
    publish: Vec<i32>,
    /// The number of the pipe on which a line says that the server answers.
    #[arg(long)]
    ready: i32,
}

/// Why the control plane ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the machine is not as it should be.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The API server could not be opened or served.
    #[error("API server: {0}")]
    Server(#[from] apiserver::Error),
    /// The Service of the cluster's DNS could not be made.
    #[error("making the Service kube-system/kube-dns: {0}")]
    Dns(String),
    /// The controllers ended.
    #[error("controllers: {0}")]
    Controllers(#[from] controllers::Error),
}

fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::System { action, source }
}

/// Runs until a signal or an error.
///
/// # Errors
/// When a part can't go on.
pub fn run(options: &Options) -> Result<(), Error> {
    let listener = |number: &i32| {
        take_inherited(*number)
            .map(TcpListener::from)
            .map_err(system("take over a listener"))
    };
    let loopback = listener(&options.loopback)?;
    let port = loopback
        .local_addr()
        .map_err(system("take over a listener"))?
        .port();
    let mut listeners = options
        .underlay
        .iter()
        .map(listener)
        .collect::<Result<Vec<_>, _>>()?;
    listeners.push(loopback);
    let published = options
        .publish
        .iter()
        .map(listener)
        .collect::<Result<Vec<_>, _>>()?;
    let ready = take_inherited(options.ready)
        .map(File::from)
        .map_err(system("take over a pipe"))?;

    let paths = Paths::of(&options.name);
    let lab: LabFile = std::fs::read(paths.config())
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(system(format!("read {}", paths.config().display())))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?
        .block_on(serve(&paths, &lab, listeners, published, port, ready))
}

async fn serve(
    paths: &Paths,
    lab: &LabFile,
    listeners: Vec<TcpListener>,
    published: Vec<TcpListener>,
    port: u16,
    mut ready: File,
) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("handle signals"))?;
    let config = &lab.config;
    let logs = paths.clone();
    let server = Server::open(apiserver::Config {
        store: paths.store(),
        pki: paths.pki(),
        service_ranges: config.service.clone(),
        advertise: config.control().iter().map(IpNet::addr).collect(),
        advertise_port: API_PORT,
        logs: Arc::new(FileLogs::new(move |node| log_directory(&logs, node))),
    })
    .await?;
    write_kubeconfigs(&server, paths, lab, port)?;
    // The listeners are open since before this process: who connects now waits.
    ready
        .write_all(b"ready\n")
        .map_err(system("say that it is ready"))?;
    drop(ready);

    let client = kube::Client::new(server.router(), "default");
    if config.dns != Dns::Off {
        make_dns_service(&client, config).await?;
    }
    let cluster = controllers::Config {
        cluster_cidrs: cluster_cidrs(config),
        ..controllers::Config::default()
    };
    let publisher = Publisher {
        paths: paths.clone(),
        client: client.clone(),
        publish: config.publish.clone(),
    };
    tokio::select! {
        ended = publisher.serve(published) => ended.map_err(system("listen on published ports"))?,
        served = server.serve(listeners) => served?,
        ended = controllers::run(client, cluster) => ended?,
        _ = terminate.recv() => server.shutdown(),
    }
    Ok(())
}

/// The Service whose address pods ask. Without endpoints where each node answers
/// itself.
async fn make_dns_service(client: &kube::Client, config: &Config) -> Result<(), Error> {
    let resource = api_resource("", "v1", "Service", "services");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "kube-system", &resource);
    let addresses = config.cluster_dns();
    let families = addresses.iter().map(|address| match address.is_ipv4() {
        true => "IPv4",
        false => "IPv6",
    });
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol});
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "ipFamilies": families.collect::<Vec<_>>(),
            "ipFamilyPolicy": if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    if config.dns == Dns::Cache {
        service["spec"]["selector"] = json!({"k8s-app": "kube-dns"});
    }
    // What runs again after a fall finds its own.
    let parameters = PatchParams::apply("podwire-lab").force();
    api.patch("kube-dns", &parameters, &Patch::Apply(&service))
        .await
        .map(drop)
        .map_err(|error| Error::Dns(message(&error)))
}

fn cluster_cidrs(config: &Config) -> Vec<ClusterCidr> {
    let cut = |range: &IpNet| ClusterCidr {
        cidr: *range,
        node_prefix: config.node_mask(range),
    };
    config.cluster.iter().map(cut).collect()
}

/// The logs of a node's pods. A pod may name any node: one that is no name
/// must not lead out of the nodes' files.
fn log_directory(paths: &Paths, node: &str) -> PathBuf {
    paths.container_logs(if is_label(node) { node } else { "none" })
}

fn write_kubeconfigs(
    server: &Server,
    paths: &Paths,
    lab: &LabFile,
    port: u16,
) -> Result<(), Error> {
    server.write_kubeconfig(&paths.kubeconfig(), &format!("https://127.0.0.1:{port}"))?;
    if let Some((user, group)) = lab.owner {
        // Whoever called sudo may use kubectl without it.
        std::os::unix::fs::chown(paths.kubeconfig(), Some(user), Some(group)).map_err(system(
            format!("give {} to its user", paths.kubeconfig().display()),
        ))?;
    }
    server.write_kubeconfig(&paths.node_kubeconfig(), &underlay_url(&lab.config))?;
    Ok(())
}

/// The API server as nodes see it.
fn underlay_url(config: &Config) -> String {
    match config.control().first().map(IpNet::addr) {
        Some(std::net::IpAddr::V6(address)) => format!("https://[{address}]:{API_PORT}"),
        Some(std::net::IpAddr::V4(address)) => format!("https://{address}:{API_PORT}"),
        // Not for a checked configuration.
        None => format!("https://localhost:{API_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read_below_the_nodes_files_only() {
        let paths = Paths::of("lab");
        assert!(log_directory(&paths, "node-1").ends_with("nodes/node-1/logs"));
        assert!(log_directory(&paths, "../../..").ends_with("nodes/none/logs"));
    }
}
