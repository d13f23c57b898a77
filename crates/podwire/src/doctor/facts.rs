//! What there is to know of a node. Reads, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use linux::namespace::{self, NetworkNamespace};
use linux::netlink::Socket;
use linux::route::{self, Filter, TABLE_MAIN};
use linux::sysctl::{Family, Setting};
use linux::{link, netlink};
use serde_json::Value;
use services::{NodeFacts, Proxy, ProxyMode, ProxySettings};

/// How long the agent may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Routes of podwire (`RTA_PROTOCOL`).
pub(super) const PROTOCOL: u8 = 112;
/// Names of podwire's own interfaces begin with this.
const OWN_INTERFACES: &str = "pw";

/// A node as it is.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What the agent says of itself; the error when it says nothing.
    pub(super) agent: Result<Health, String>,
    /// podwire's CNI configuration; `None` when there is none.
    pub(super) configuration: Option<Configuration>,
    /// CNI configurations of others, in the order runtimes look at them.
    pub(super) others: Vec<Other>,
    /// Settings by name; absent ones are `None`.
    pub(super) settings: Vec<(String, Option<i64>)>,
    /// Pods' links: name, the pod where that is known, largest packet.
    pub(super) pods: Vec<PodLink>,
    /// Routes of the main table.
    pub(super) routes: Vec<RouteFact>,
    /// Connections tracked, and the most there may be.
    pub(super) connections: Option<(u64, u64)>,
    /// What this kernel cannot do, and why.
    pub(super) lacking: Vec<(Part, String)>,
}

/// Something podwire does in one of several ways, each of which needs something
/// of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A back end of routing.
    Backend(&'static str),
    /// A proxy for Services.
    Proxy(&'static str),
    /// The fast path of established connections.
    FastPath,
}

/// What the agent says of itself.
#[derive(Clone, Debug)]
pub(super) struct Health {
    /// Whether it is healthy.
    pub(super) healthy: bool,
    /// What is not as it should be.
    pub(super) problems: Vec<String>,
}

/// podwire's CNI configuration.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    /// How pods are attached.
    pub(super) attach: String,
    /// Largest packet of new pods.
    pub(super) mtu: Option<u32>,
}

/// Another project's CNI configuration.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) path: PathBuf,
    /// Whether runtimes take it instead of podwire's.
    pub(super) first: bool,
}

/// The node's end of a pod's cable.
#[derive(Clone, Debug)]
pub(super) struct PodLink {
    /// The interface's name.
    pub(super) name: String,
    /// The pod, `NAMESPACE/NAME`, where that is known.
    pub(super) pod: Option<String>,
    /// Its largest packet, bytes.
    pub(super) mtu: u32,
}

/// A route of the main table.
#[derive(Clone, Debug)]
pub(super) struct RouteFact {
    pub(super) destination: IpNet,
    pub(super) protocol: u8,
    /// Whether it leads over one of podwire's own interfaces.
    pub(super) own_interface: bool,
    /// As people write it.
    pub(super) text: String,
}

/// Why a node could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot ask the kernel: {0}")]
    Netlink(#[from] netlink::Error),
    #[error("cannot try out what the kernel can do: {0}")]
    Namespace(#[from] namespace::Error),
    #[error("cannot read {path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
}

impl Facts {
    /// Reads the node this process runs on.
    pub(super) fn gather(
        configurations: &Path,
        reservations: &Path,
        health: SocketAddr,
    ) -> Result<Facts, Error> {
        let mut socket = Socket::open_route()?;
        let links = link::list(&mut socket)?;
        let names = pod_names(reservations);
        let pods = links
            .iter()
            .filter(|link| link.name.starts_with(OWN_INTERFACES))
            .filter(|link| link.kind.as_deref() == Some("veth"))
            .map(|link| PodLink {
                name: link.name.clone(),
                pod: names.get(&link.name).cloned(),
                mtu: link.mtu,
            })
            .collect();
        let own = |index: u32| {
            links
                .iter()
                .any(|link| link.index == index && link.name.starts_with(OWN_INTERFACES))
        };
        let filter = Filter {
            table: Some(TABLE_MAIN),
            ..Filter::default()
        };
        let routes = route::list(&mut socket, filter)?
            .iter()
            .map(|route| RouteFact {
                destination: route.destination,
                protocol: route.protocol,
                own_interface: route.link.is_some_and(own),
                text: route.to_string(),
            })
            .collect();
        let (configuration, others) = configurations_in(configurations)?;
        let uplinks = links
            .iter()
            .filter(|link| link.up && !link.loopback && !link.name.starts_with(OWN_INTERFACES))
            .map(|link| link.name.clone());
        Ok(Facts {
            agent: ask(health).map_err(|error| error.to_string()),
            configuration,
            others,
            settings: settings(uplinks),
            pods,
            routes,
            connections: connections(),
            lacking: lacking()?,
        })
    }
}

/// Tries out every back end, every proxy and the fast path, in network namespaces made for it.
fn lacking() -> Result<Vec<(Part, String)>, Error> {
    let backends = routing::probe::lacking().into_iter();
    let mut lacking: Vec<(Part, String)> = backends
        .map(|(name, why)| (Part::Backend(name), why))
        .collect();
    for mode in ProxyMode::ALL {
        let namespace = NetworkNamespace::create()?;
        let outcome = namespace.run(|| {
            Proxy::start_as(&ProxySettings::new(mode), NodeFacts::default())
                .and_then(|mut proxy| proxy.sync())
        })?;
        if let Err(error) = outcome {
            lacking.push((Part::Proxy(mode.name()), error.to_string()));
        }
    }
    if let Err(error) = linux::fast_path::probe() {
        lacking.push((Part::FastPath, error.to_string()));
    }
    Ok(lacking)
}

/// Pods by the name of the node's end of their cable, as far as the runtime named
/// them to the plugin.
fn pod_names(reservations: &Path) -> BTreeMap<String, String> {
    // Without reservations the interfaces' names have to do.
    let Ok(findings) = cni::audit::examine(reservations) else {
        return BTreeMap::new();
    };
    let named = findings.reservations.into_iter().filter_map(|entry| {
        let pod = entry.pod?;
        let name = format!("{}/{}", pod.namespace, pod.name);
        Some((entry.host_interface?, name))
    });
    named.collect()
}

fn settings(uplinks: impl Iterator<Item = String>) -> Vec<(String, Option<i64>)> {
    let mut wanted = vec![
        Setting::forwarding(Family::V4),
        Setting::forwarding(Family::V6),
        Setting::of_interface(Family::V4, "all", "rp_filter"),
        Setting::new("bridge/bridge-nf-call-iptables"),
        Setting::new("bridge/bridge-nf-call-ip6tables"),
    ];
    wanted.extend(uplinks.map(|name| Setting::of_interface(Family::V4, &name, "rp_filter")));
    wanted
        .iter()
        .map(|setting| (setting.to_string(), setting.read().ok()))
        .collect()
}

fn connections() -> Option<(u64, u64)> {
    let number = |name: &str| u64::try_from(Setting::new(name).read().ok()?).ok();
    Some((
        number("netfilter/nf_conntrack_count")?,
        number("netfilter/nf_conntrack_max")?,
    ))
}

fn configurations_in(directory: &Path) -> Result<(Option<Configuration>, Vec<Other>), Error> {
    let failed = |source| Error::File {
        path: directory.to_owned(),
        source,
    };
    let mut paths: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    // What container runtimes look at.
    paths.retain(|path| {
        path.extension()
            .is_some_and(|kind| kind == "conf" || kind == "conflist" || kind == "json")
    });
    paths.sort();
    let mut configuration = None;
    let mut others = Vec::new();
    for path in paths {
        let list: Value = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let own = list["plugins"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|plugin| plugin["type"] == "podwire-cni");
        match own {
            Some(plugin) if configuration.is_none() => {
                configuration = Some(Configuration {
                    attach: plugin["attach"].as_str().unwrap_or_default().to_owned(),
                    mtu: plugin["mtu"].as_u64().and_then(|mtu| mtu.try_into().ok()),
                });
            }
            _ => others.push(Other {
                path,
                first: configuration.is_none(),
            }),
        }
    }
    Ok((configuration, others))
}

/// What the agent says at `/healthz`: how it is in the first line, and then
/// what is not as it should be.
fn ask(address: SocketAddr) -> io::Result<Health> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if !head.starts_with("HTTP/1.1 ") {
        return Err(io::Error::other(format!("{address} serves something else")));
    }
    Ok(Health {
        healthy: head.starts_with("HTTP/1.1 200"),
        problems: body.lines().skip(1).map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podwires_configuration_is_known_by_its_plugin_and_others_by_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let own = r#"{"plugins":[{"type":"podwire-cni","attach":"bridge","mtu":1450}]}"#;
        for (name, text) in [
            ("05-first.conflist", "{}"),
            ("10-podwire.conflist", own),
            ("20-later.conf", "not JSON"),
            ("README", ""),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let (configuration, others) = configurations_in(directory.path()).unwrap();
        let configuration = configuration.unwrap();
        assert_eq!(
            (&*configuration.attach, configuration.mtu),
            ("bridge", Some(1450))
        );
        let first: Vec<bool> = others.iter().map(|other| other.first).collect();
        assert_eq!(first, [true, false]);
        let (none, _) = configurations_in(&directory.path().join("absent")).unwrap();
        assert!(none.is_none());
    }
}
