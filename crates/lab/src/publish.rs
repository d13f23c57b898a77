//! Services on the machine's loopback addresses, `lab up --publish`.
//!
//! The listeners are opened by the command, before anything is made, and handed
//! on to each control plane: while none runs, connections wait. Each connection
//! asks the API for the Service's address and goes on from inside a node that is
//! ready, as a program on that node would, so that the machine itself needs no
//! route into the lab.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DynamicObject, ListParams};
use linux::namespace::NetworkNamespace;
use rustix::io::Errno;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::{api_resource, condition, elements, message, number, text, texts};
use crate::config::Publish;
use crate::exec;
use crate::paths::Paths;
use crate::protocol::{Answer, Request};

/// How long one node may take to reach the Service at one address.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the kernel would not, for want of files
/// for instance.
const REST: Duration = Duration::from_millis(100);

/// Why a port can't be published.
#[derive(Debug, thiserror::Error)]
#[error(
    "--publish {port}: cannot listen on {address}: {source}; choose another port, or end the \
     program that has it (ss -ltnp tells which)"
)]
pub(crate) struct Taken {
    port: u16,
    address: SocketAddr,
    source: io::Error,
}

/// Listens on the loopback addresses of the calling thread's network namespace.
/// A family the machine does not have is left out.
pub(crate) fn bind(all: &[Publish]) -> Result<Vec<TcpListener>, Taken> {
    let mut listeners = Vec::new();
    for one in all {
        for loopback in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            let address = SocketAddr::new(loopback, one.port);
            match TcpListener::bind(address) {
                Ok(listener) => listeners.push(listener),
                Err(error)
                    if loopback.is_ipv6()
                        && matches!(
                            Errno::from_io_error(&error),
                            Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)
                        ) => {}
                Err(source) => {
                    return Err(Taken {
                        port: one.port,
                        address,
                        source,
                    });
                }
            }
        }
    }
    Ok(listeners)
}

/// What connections are led by.
pub(crate) struct Publisher {
    pub(crate) paths: Paths,
    pub(crate) client: kube::Client,
    pub(crate) publish: Vec<Publish>,
}

impl Publisher {
    /// Takes connections for good; returns only when a listener can't be used.
    pub(crate) async fn serve(self, listeners: Vec<TcpListener>) -> io::Result<()> {
        let publisher = Arc::new(self);
        let mut loops = JoinSet::new();
        for listener in listeners {
            let port = listener.local_addr()?.port();
            let Some(publish) = publisher.publish.iter().find(|one| one.port == port) else {
                continue;
            };
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loops.spawn(Arc::clone(&publisher).accept(listener, publish.clone()));
        }
        while loops.join_next().await.is_some() {}
        // Nothing is published.
        std::future::pending().await
    }

    async fn accept(self: Arc<Self>, listener: tokio::net::TcpListener, publish: Publish) {
        loop {
            match listener.accept().await {
                Ok((near, _)) => {
                    let (publisher, publish) = (Arc::clone(&self), publish.clone());
                    tokio::spawn(async move { publisher.lead(&publish, near).await });
                }
                Err(error) => {
                    tracing::warn!("published port {}: {error}", publish.port);
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// One connection, from its first byte to its last in both directions; the
    /// end of one is passed on while the other goes on.
    async fn lead(&self, publish: &Publish, mut near: TcpStream) {
        match self.connect(publish).await {
            Ok(mut far) => {
                if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
                    tracing::debug!("published port {}: {error}", publish.port);
                }
            }
            Err(why) => tracing::warn!("published port {}: connection closed: {why}", publish.port),
        }
    }

    /// A connection to the Service as it is now.
    async fn connect(&self, publish: &Publish) -> Result<TcpStream, String> {
        let services: Api<DynamicObject> = Api::namespaced_with(
            self.client.clone(),
            &publish.namespace,
            &api_resource("", "v1", "Service", "services"),
        );
        let service = services
            .get_opt(&publish.service)
            .await
            .map_err(|error| message(&error))?
            .map(value)
            .ok_or_else(|| {
                format!(
                    "there is no Service {}/{}",
                    publish.namespace, publish.service
                )
            })?;
        let addresses = addresses(&service, publish)?;
        let nodes: Api<DynamicObject> = Api::all_with(
            self.client.clone(),
            &api_resource("", "v1", "Node", "nodes"),
        );
        let nodes = nodes
            .list(&ListParams::default())
            .await
            .map_err(|error| message(&error))?;
        let ready = nodes.items.into_iter().map(value).filter_map(|node| {
            matches!(condition(&node, "Ready"), Some(("True", _)))
                .then(|| text(&node, "/metadata/name").to_owned())
        });
        let mut why = String::new();
        for node in ready {
            for address in &addresses {
                match self.connect_from(&node, *address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => {
                        // Writing to a string cannot fail.
                        let _ = write!(why, "; {address} from {node}: {error}");
                    }
                }
            }
        }
        Err(match why.strip_prefix("; ") {
            Some(why) => why.to_owned(),
            None => "no node is ready".to_owned(),
        })
    }

    async fn connect_from(&self, node: &str, address: SocketAddr) -> Result<TcpStream, String> {
        let request = Request::Network {
            name: node.to_owned(),
        };
        let paths = self.paths.clone();
        // A socket belongs for good to the namespace of the thread that made it.
        let socket = tokio::task::spawn_blocking(move || {
            let (Answer::Network, Some(file)) =
                exec::ask(&paths, &request).map_err(|error| error.to_string())?
            else {
                return Err("the lab's supervisor gave no way in".to_owned());
            };
            NetworkNamespace::from_fd(file)
                .and_then(|namespace| {
                    namespace.run(|| match address {
                        SocketAddr::V4(_) => TcpSocket::new_v4(),
                        SocketAddr::V6(_) => TcpSocket::new_v6(),
                    })
                })
                .map_err(|error| error.to_string())?
                .map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| error.to_string())??;
        tokio::time::timeout(PATIENCE, socket.connect(address))
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
            .map_err(|error| error.to_string())
    }
}

fn value(object: DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// Where the Service is to be had: its cluster addresses, in its own order.
fn addresses(service: &Value, publish: &Publish) -> Result<Vec<SocketAddr>, String> {
    let name = format!("{}/{}", publish.namespace, publish.service);
    let has_port = elements(service, "/spec/ports").any(|port| {
        number(port, "/port") == i64::from(publish.service_port)
            && matches!(text(port, "/protocol"), "" | "TCP")
    });
    if !has_port {
        return Err(format!(
            "Service {name} has no TCP port {}",
            publish.service_port
        ));
    }
    let addresses: Vec<SocketAddr> = texts(service, "/spec/clusterIPs")
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, publish.service_port))
        .collect();
    if addresses.is_empty() {
        return Err(format!(
            "Service {name} has no cluster address; headless and ExternalName Services can't be \
             published"
        ));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn publish() -> Publish {
        "8080:shop/web:80".parse().unwrap()
    }

    #[test]
    fn a_service_is_reached_at_its_cluster_addresses() {
        let service = json!({"spec": {
            "clusterIPs": ["10.96.0.20", "fd00:96::20"],
            "ports": [{"port": 80, "protocol": "TCP"}]}});
        assert_eq!(
            addresses(&service, &publish()).unwrap(),
            [
                "10.96.0.20:80".parse().unwrap(),
                "[fd00:96::20]:80".parse().unwrap()
            ]
        );
    }

    #[rstest::rstest]
    #[case::headless(json!({"clusterIPs": ["None"], "ports": [{"port": 80}]}), "no cluster address")]
    #[case::external_name(json!({"ports": [{"port": 80}]}), "no cluster address")]
    #[case::other_port(json!({"clusterIPs": ["10.96.0.20"], "ports": [{"port": 81}]}), "no TCP port 80")]
    #[case::udp(json!({"clusterIPs": ["10.96.0.20"], "ports": [{"port": 80, "protocol": "UDP"}]}), "no TCP port 80")]
    fn what_cannot_be_reached_is_told(#[case] spec: Value, #[case] why: &str) {
        let error = addresses(&json!({ "spec": spec }), &publish()).unwrap_err();
        assert!(error.contains("shop/web") && error.contains(why), "{error}");
    }
}
