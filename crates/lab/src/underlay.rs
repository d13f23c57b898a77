//! The lab's network: a switch, a router, the outside world, and the
//! namespace the API server is reached in; all held by file descriptors, so
//! that they are gone with the process that holds them.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, Bridge, VethEnd};
use linux::namespace::NetworkNamespace;
use linux::netlink::{self, Socket};
use linux::route::{self, Route};
use linux::sysctl::{self, Family, Setting};

use crate::config::Config;

/// The bridge of the first subnet in the switch's namespace; the others have
/// their number behind it.
const BRIDGE: &str = "switch";
/// Every member's interface to the switch; the router has one in each subnet.
const UPLINK: &str = "eth0";
/// The router's interface to the outside.
const OUTSIDE: &str = "outside";
/// Made by an administrator (`RTPROT_STATIC`): not podwire's own, which an
/// agent would take away.
const STATIC: u8 = 4;
/// The API server's port on the underlay.
pub(crate) const API_PORT: u16 = 6443;

/// Why the underlay could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot make the network namespace of the {what}: {source}")]
    Namespace {
        what: String,
        source: linux::namespace::Error,
    },
    #[error("{what}: {source}")]
    Netlink {
        what: String,
        source: netlink::Error,
    },
    #[error("{what}: {source}")]
    Sysctl { what: String, source: sysctl::Error },
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{what}: link {link} is gone again")]
    Gone { what: String, link: String },
}

/// The underlay of a running lab.
pub(crate) struct Underlay {
    config: Config,
    switch: NetworkNamespace,
    switch_socket: Socket,
    /// The bridge of each subnet.
    bridges: Vec<u32>,
    router: NetworkNamespace,
    outside: NetworkNamespace,
    control: NetworkNamespace,
}

impl Underlay {
    /// Makes all but the nodes.
    pub(crate) fn create(config: &Config) -> Result<Self, Error> {
        let switch = namespace(
            "switch",
            &Config {
                family: crate::config::Family::V4,
                ..config.clone()
            },
        )?;
        let mut switch_socket = socket("switch", &switch)?;
        let netlink = |what: &'static str| {
            move |source| Error::Netlink {
                what: what.into(),
                source,
            }
        };
        let mut bridges = Vec::new();
        for subnet in 0..config.subnets {
            let name = match subnet {
                0 => BRIDGE.to_owned(),
                _ => format!("{BRIDGE}-{}", subnet + 1),
            };
            switch_socket
                .execute(&link::add_bridge(&Bridge {
                    name: &name,
                    ..Bridge::default()
                }))
                .map_err(netlink("switch"))?;
            bridges.push(index("switch", &mut switch_socket, &name)?);
        }
        let mut underlay = Self {
            config: config.clone(),
            switch,
            switch_socket,
            bridges,
            router: namespace("router", config)?,
            outside: namespace("outside", config)?,
            control: namespace("control", config)?,
        };

        let router = underlay.router.clone();
        for subnet in 0..config.subnets {
            let (port, uplink) = match subnet {
                0 => ("router".to_owned(), UPLINK.to_owned()),
                _ => (format!("router-{}", subnet + 1), format!("eth{subnet}")),
            };
            let addresses = config.router(subnet);
            underlay.plug(&port, &router, &uplink, subnet, &addresses)?;
        }
        let control = underlay.control.clone();
        let uplink = underlay.plug("control", &control, UPLINK, 0, &config.control())?;
        // It answers nodes of all subnets, and knows no other network.
        let gateways = config.router(0);
        let routes: Vec<_> = (1..config.subnets)
            .flat_map(|subnet| config.subnet(subnet))
            .filter_map(|range| {
                let gateway = same_family(&gateways, range.addr())?;
                let route = Route::to(range).via(gateway).dev(uplink);
                Some(route::add(&route.protocol(STATIC)))
            })
            .collect();
        socket("control", &control)?
            .execute_all(&routes)
            .map_err(netlink("control"))?;
        underlay.connect_outside()?;
        Ok(underlay)
    }

    /// Joins a namespace to a subnet's switch: a veth pair and addresses. Returns
    /// the index of the member's interface.
    fn plug(
        &mut self,
        name: &str,
        member: &NetworkNamespace,
        uplink: &str,
        subnet: u32,
        addresses: &[IpNet],
    ) -> Result<u32, Error> {
        let netlink = |source| Error::Netlink {
            what: format!("{name} on the switch"),
            source,
        };
        let port = port_name(name);
        let bridge = usize::try_from(subnet)
            .ok()
            .and_then(|subnet| self.bridges.get(subnet).copied());
        self.switch_socket
            .execute(&link::add_veth(
                &VethEnd {
                    name: &port,
                    ..VethEnd::default()
                },
                bridge,
                &VethEnd {
                    name: uplink,
                    namespace: Some(member),
                    ..VethEnd::default()
                },
            ))
            .map_err(netlink)?;
        let mut socket = socket(name, member)?;
        let uplink = index(name, &mut socket, uplink)?;
        let mut requests = vec![link::set_up(uplink)];
        requests.extend(
            addresses
                .iter()
                .map(|net| address::add(&Address::new(uplink, *net))),
        );
        socket.execute_all(&requests).map_err(netlink)?;
        Ok(uplink)
    }

    fn connect_outside(&mut self) -> Result<(), Error> {
        let netlink = |source| Error::Netlink {
            what: "the outside network".into(),
            source,
        };
        let mut router = socket("router", &self.router)?;
        router
            .execute(&link::add_veth(
                &VethEnd {
                    name: OUTSIDE,
                    ..VethEnd::default()
                },
                None,
                &VethEnd {
                    name: UPLINK,
                    namespace: Some(&self.outside),
                    ..VethEnd::default()
                },
            ))
            .map_err(netlink)?;
        let near = index("router", &mut router, OUTSIDE)?;
        let requests: Vec<_> = self
            .config
            .outside_router()
            .iter()
            .map(|net| address::add(&Address::new(near, *net)))
            .collect();
        router.execute_all(&requests).map_err(netlink)?;

        let mut outside = socket("outside", &self.outside)?;
        let far = index("outside", &mut outside, UPLINK)?;
        let mut requests = vec![link::set_up(far)];
        requests.extend(
            self.config
                .outside_host()
                .iter()
                .map(|net| address::add(&Address::new(far, *net))),
        );
        // To the nodes and nowhere else: the outside knows nothing of pods and
        // Services.
        requests.extend(self.config.all_subnets().filter_map(|range| {
            let gateway = same_family(&self.config.outside_router(), range.addr())?;
            Some(route::add(
                &Route::to(range).via(gateway).dev(far).protocol(STATIC),
            ))
        }));
        outside.execute_all(&requests).map_err(netlink)?;

        let config = &self.config;
        self.router
            .run(|| {
                for (family, wanted) in [
                    (Family::V4, crate::config::Family::V6),
                    (Family::V6, crate::config::Family::V4),
                ] {
                    if config.family != wanted {
                        Setting::forwarding(family).write(1)?;
                    }
                }
                Ok(())
            })
            .map_err(|source| Error::Namespace {
                what: "router".into(),
                source,
            })?
            .map_err(|source| Error::Sysctl {
                what: "router".into(),
                source,
            })
    }

    /// Makes the network namespace of a node and joins it to the switch of its
    /// subnet. Its predecessor of the same name must be gone.
    pub(crate) fn connect_node(
        &mut self,
        name: &str,
        subnet: u32,
        addresses: &[IpNet],
    ) -> Result<NetworkNamespace, Error> {
        // The port of a predecessor goes in the background with the
        // predecessor's namespace; its name is needed now.
        link::delete_by_name(&mut self.switch_socket, &port_name(name)).map_err(|source| {
            Error::Netlink {
                what: format!("{name} on the switch"),
                source,
            }
        })?;
        let node = namespace(name, &self.config)?;
        let uplink = self.plug(name, &node, UPLINK, subnet, addresses)?;
        let routes: Vec<_> = self
            .config
            .router(subnet)
            .iter()
            .map(|gateway| Route::default_of(gateway.addr()).dev(uplink))
            .map(|route| route::add(&route.protocol(STATIC)))
            .collect();
        socket(name, &node)?
            .execute_all(&routes)
            .map_err(|source| Error::Netlink {
                what: format!("{name} on the switch"),
                source,
            })?;
        Ok(node)
    }

    /// Takes a node's port off the switch.
    pub(crate) fn disconnect_node(&mut self, name: &str) -> Result<(), Error> {
        link::delete_by_name(&mut self.switch_socket, &port_name(name)).map_err(|source| {
            Error::Netlink {
                what: format!("{name} on the switch"),
                source,
            }
        })
    }

    /// The namespace of the nodes' default gateway.
    pub(crate) fn router(&self) -> &NetworkNamespace {
        &self.router
    }

    /// The namespaces that are no nodes, by name.
    pub(crate) fn namespace(&self, name: &str) -> Option<&NetworkNamespace> {
        match name {
            "switch" => Some(&self.switch),
            "router" => Some(&self.router),
            "outside" => Some(&self.outside),
            "control" => Some(&self.control),
            _ => None,
        }
    }

    /// Listens for the API server on the underlay.
    pub(crate) fn api_listeners(&self) -> Result<Vec<TcpListener>, Error> {
        self.config
            .control()
            .iter()
            .map(|net| {
                let address = SocketAddr::new(net.addr(), API_PORT);
                self.control
                    .run(|| TcpListener::bind(address))
                    .map_err(|source| Error::Namespace {
                        what: "control".into(),
                        source,
                    })?
                    .map_err(|source| Error::Listen { address, source })
            })
            .collect()
    }
}

/// The switch's port of a member: its name where that is short enough for an
/// interface, else what is left of it.
fn port_name(member: &str) -> String {
    if link::valid_name(member) {
        return member.to_owned();
    }
    format!("n-{:012x}", hash(member))
}

/// A number of 48 bits for a name: FNV-1a, cut to twelve hexadecimal digits.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }) & 0xffff_ffff_ffff
}

fn same_family(nets: &[IpNet], address: IpAddr) -> Option<IpAddr> {
    nets.iter()
        .map(IpNet::addr)
        .find(|candidate| candidate.is_ipv4() == address.is_ipv4())
}

/// A namespace with its loopback up and no surprises: nothing inherited from
/// the machine's settings, no addresses made up by the kernel, no waiting for
/// duplicate-address detection.
fn namespace(what: &str, config: &Config) -> Result<NetworkNamespace, Error> {
    let failed = |source| Error::Namespace {
        what: what.to_owned(),
        source,
    };
    let namespace = NetworkNamespace::create().map_err(failed)?;
    let no_v6 = i64::from(config.family == crate::config::Family::V4);
    namespace
        .run(|| {
            Setting::forwarding(Family::V4).write(0)?;
            for interface in ["all", "default"] {
                Setting::of_interface(Family::V4, interface, "rp_filter").write(0)?;
                for (leaf, value) in [
                    ("disable_ipv6", no_v6),
                    ("accept_ra", 0),
                    ("accept_dad", 0),
                    ("dad_transmits", 0),
                ] {
                    Setting::of_interface(Family::V6, interface, leaf).write_if_present(value)?;
                }
            }
            Ok(())
        })
        .map_err(failed)?
        .map_err(|source| Error::Sysctl {
            what: what.to_owned(),
            source,
        })?;
    let mut socket = socket(what, &namespace)?;
    let loopback = index(what, &mut socket, "lo")?;
    socket
        .execute(&link::set_up(loopback))
        .map_err(|source| Error::Netlink {
            what: what.to_owned(),
            source,
        })?;
    Ok(namespace)
}

fn socket(what: &str, namespace: &NetworkNamespace) -> Result<Socket, Error> {
    namespace.route_socket().map_err(|source| Error::Namespace {
        what: what.to_owned(),
        source,
    })
}

fn index(what: &str, socket: &mut Socket, name: &str) -> Result<u32, Error> {
    link::get(socket, name)
        .map_err(|source| Error::Netlink {
            what: what.to_owned(),
            source,
        })?
        .map(|link| link.index)
        .ok_or_else(|| Error::Gone {
            what: what.to_owned(),
            link: name.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Wanted;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    fn config(family: crate::config::Family) -> Config {
        Config::new(&Wanted {
            name: "test".into(),
            family,
            nodes: 2,
            ..Wanted::default()
        })
        .unwrap()
    }

    /// Sends a word from one namespace to an address of another and returns
    /// the source address the other saw.
    fn talk(from: &NetworkNamespace, to: &NetworkNamespace, address: IpAddr) -> io::Result<IpAddr> {
        let listener = to
            .run(|| TcpListener::bind(SocketAddr::new(address, 0)))
            .unwrap()?;
        let target = listener.local_addr()?;
        let mut stream = from
            .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)))
            .unwrap()?;
        let (mut accepted, peer) = listener.accept()?;
        stream.write_all(b"word")?;
        let mut word = [0; 4];
        accepted.read_exact(&mut word)?;
        Ok(peer.ip())
    }

    #[rstest::rstest]
    #[case(crate::config::Family::V4)]
    #[case(crate::config::Family::V6)]
    #[case(crate::config::Family::Dual)]
    fn nodes_reach_each_other_the_control_plane_and_the_outside(
        #[case] family: crate::config::Family,
    ) {
        let config = config(family);
        let mut underlay = Underlay::create(&config).unwrap();
        let first = underlay
            .connect_node("node-1", 0, &config.node(1, 0))
            .unwrap();
        let second = underlay
            .connect_node("node-2", 0, &config.node(2, 0))
            .unwrap();
        for (index, own) in config.node(1, 0).iter().enumerate() {
            for (target, addresses) in [
                (&second, config.node(2, 0)),
                (&underlay.control, config.control()),
                (&underlay.outside, config.outside_host()),
            ] {
                let seen = talk(&first, target, addresses[index].addr()).unwrap();
                assert_eq!(seen, own.addr());
            }
            // And back from the outside.
            talk(&underlay.outside, &first, own.addr()).unwrap();
        }
    }

    #[test]
    fn the_outside_knows_the_underlay_and_nothing_else() {
        let config = config(crate::config::Family::Dual);
        let underlay = Underlay::create(&config).unwrap();
        let mut socket = underlay.outside.route_socket().unwrap();
        let mut routes: Vec<String> = route::list(&mut socket, route::Filter::default())
            .unwrap()
            .iter()
            .filter(|route| route.protocol == STATIC)
            .map(|route| route.destination.to_string())
            .collect();
        routes.sort();
        assert_eq!(routes, ["192.168.64.0/24", "fd00:64::/64"]);
        let unreachable = underlay
            .outside
            .run(|| {
                TcpStream::connect_timeout(
                    &"198.51.100.1:1".parse().unwrap(),
                    Duration::from_secs(1),
                )
            })
            .unwrap()
            .unwrap_err();
        assert_eq!(unreachable.kind(), io::ErrorKind::NetworkUnreachable);
    }

    #[test]
    fn nodes_of_other_subnets_are_reached_by_the_router() {
        let config = Config::new(&Wanted {
            name: "test".into(),
            subnets: Some(2),
            nodes: 2,
            ..Wanted::default()
        })
        .unwrap();
        let mut underlay = Underlay::create(&config).unwrap();
        let mut connect = |number: u32| {
            let subnet = config.subnet_of(number);
            let addresses = config.node(number, subnet);
            let name = format!("node-{number}");
            let node = underlay.connect_node(&name, subnet, &addresses).unwrap();
            (node, addresses)
        };
        let (first, of_first) = connect(1);
        let (second, of_second) = connect(2);
        for (index, own) in of_second.iter().enumerate() {
            for (target, addresses) in [
                (&first, &of_first),
                (&underlay.control, &config.control()),
                (&underlay.outside, &config.outside_host()),
            ] {
                let seen = talk(&second, target, addresses[index].addr()).unwrap();
                assert_eq!(seen, own.addr());
                talk(target, &second, own.addr()).unwrap();
            }
        }
    }

    #[test]
    fn a_node_can_be_connected_again_under_its_name() {
        let config = config(crate::config::Family::Dual);
        let mut underlay = Underlay::create(&config).unwrap();
        let first = underlay
            .connect_node("node-1", 0, &config.node(1, 0))
            .unwrap();
        drop(first);
        let again = underlay
            .connect_node("node-1", 0, &config.node(1, 0))
            .unwrap();
        let control = underlay.control.clone();
        talk(&again, &control, config.control()[0].addr()).unwrap();
        underlay.disconnect_node("node-1").unwrap();
        underlay.disconnect_node("node-1").unwrap();
    }

    #[test]
    fn long_names_have_ports_too() {
        assert_eq!(port_name("node-12"), "node-12");
        let long = port_name("a-node-with-a-very-long-name");
        assert!(link::valid_name(&long), "{long}");
        assert_ne!(long, port_name("b-node-with-a-very-long-name"));
    }
}
