//! Whether this kernel can do what a back end needs, found out before anything
//! is changed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, Bridge};
use linux::namespace::NetworkNamespace;
use linux::sysctl::{self, Setting};
use linux::wireguard::PrivateKey;

use crate::apply::{Error, Kernel};
use crate::backend::{Backend, Families, NAMES, Settings, Wireguard, by_name, publish};
use crate::keys;
use crate::model::{Family, Node};
use crate::plan::plan;
use crate::underlay::Underlay;

/// This kernel cannot do what a back end needs.
#[derive(Debug)]
pub struct Missing {
    /// The back end.
    pub backend: &'static str,
    /// What the kernel refused, in order.
    pub failures: Vec<Error>,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this kernel cannot do what back end {} needs",
            self.backend
        )?;
        // The rest follows from the first.
        if let Some(failure) = self.failures.first() {
            write!(f, ": {failure}")?;
        }
        write!(f, "; or choose another back end")
    }
}

/// Tries a back end out with one made-up peer, in a network namespace made for
/// it: everything it would make on this node is made there, and gone with the
/// namespace.
///
/// # Errors
/// What the kernel refused.
pub fn probe(backend: Arc<dyn Backend>, underlay: Families) -> Result<(), Missing> {
    let name = backend.name();
    let missing = |failures| Missing {
        backend: name,
        failures,
    };
    let failures = attempt(backend, underlay).map_err(|error| missing(vec![error]))?;
    if failures.is_empty() {
        Ok(())
    } else {
        Err(missing(failures))
    }
}

/// Which back ends this kernel cannot do, and the first thing it refused of each.
/// Everything is tried in network namespaces of its own.
pub fn lacking() -> Vec<(&'static str, String)> {
    let families = Families::of(&Node {
        addresses: Family::BOTH
            .into_iter()
            .filter(|family| match family {
                Family::V4 => true,
                Family::V6 => Setting::forwarding(sysctl::Family::V6).read().is_ok(),
            })
            .map(|family| match family {
                Family::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
                Family::V6 => IpAddr::from(Ipv6Addr::LOCALHOST),
            })
            .collect(),
        ..Node::default()
    });
    let why = |name: &'static str| -> Option<String> {
        let mut settings = Settings::default();
        // Those of the made-up nodes.
        let own = node("own", 1, families);
        settings.vxlan_multicast.cluster = own.ranges;
        if name == "wireguard" {
            match unused_key() {
                Ok(wireguard) => settings.wireguard = Some(wireguard),
                Err(error) => return Some(error.to_string()),
            }
        }
        let missing = probe(by_name(name, &settings)?, families).err()?;
        let first = missing.failures.first();
        Some(first.map_or_else(|| missing.to_string(), ToString::to_string))
    };
    NAMES
        .into_iter()
        .filter_map(|name| Some((name, why(name)?)))
        .collect()
}

/// WireGuard with a key made for the occasion.
fn unused_key() -> Result<Wireguard, keys::Error> {
    let private_key = PrivateKey::generate().map_err(keys::Error::Random)?;
    Ok(Wireguard {
        public_key: keys::public_key(&private_key)?,
        private_key,
        port: 51820,
    })
}

fn attempt(backend: Arc<dyn Backend>, underlay: Families) -> Result<Vec<Error>, Error> {
    let namespace = NetworkNamespace::create()?;
    let mut kernel = namespace.run(Kernel::open)??;
    let own = node("own", 1, underlay);
    let socket = kernel.socket();
    // A bridge without ports: every kernel that carries pods has bridges.
    let wire = Bridge {
        name: "wire",
        ..Bridge::default()
    };
    socket.execute(&link::add_bridge(&wire))?;
    if let Some(link) = link::get(socket, wire.name)? {
        for address in &own.addresses {
            let length = if address.is_ipv4() { 24 } else { 64 };
            if let Ok(net) = IpNet::new(*address, length) {
                socket.execute(&address::add(&Address::new(link.index, net)))?;
            }
        }
    }
    let connected = Underlay::read(socket)?;
    let backends = [backend];
    let mut peer = node("peer", 2, underlay);
    let mut data = publish(&backends, &peer, &connected);
    if let Some(wireguard) = &mut data.wireguard {
        // Any other key than the own one.
        wireguard.public_key.0[0] ^= 1;
    }
    peer.data = Some(data);
    let plan = plan(&backends, &own, [&peer], &connected);
    Ok(kernel.apply(&plan.state)?.failures)
}

/// A node of the ranges for documentation (RFC 5737, RFC 3849).
fn node(name: &str, number: u8, underlay: Families) -> Node {
    let mut node = Node {
        name: name.into(),
        ..Node::default()
    };
    let number16 = u16::from(number);
    let of = |family, address: IpAddr, range: Result<IpNet, _>| {
        let range: Result<IpNet, ipnet::PrefixLenError> = range;
        underlay.has(family).then_some((address, range.ok()))
    };
    let four = of(
        Family::V4,
        [192, 0, 2, number].into(),
        IpNet::new([198, 51, 100, 64 * number].into(), 26),
    );
    let six = of(
        Family::V6,
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, number16].into(),
        IpNet::new([0x2001, 0xdb8, 1, number16, 0, 0, 0, 0].into(), 64),
    );
    for (address, range) in [four, six].into_iter().flatten() {
        node.addresses.push(address);
        node.ranges.extend(range);
    }
    node
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn both() -> Families {
        let address = |text: &str| text.parse().unwrap();
        Families::of(&Node {
            addresses: vec![address("192.0.2.1"), address("2001:db8::1")],
            ..Node::default()
        })
    }

    #[rstest]
    fn what_every_kernel_with_vxlan_can_do_is_found(
        #[values("host-gw", "static", "vxlan", "vxlan-gpe", "vxlan-multicast")] name: &str,
    ) {
        let mut settings = Settings::default();
        settings.vxlan_multicast.cluster = vec!["198.51.100.0/24".parse().unwrap()];
        probe(by_name(name, &settings).unwrap(), both()).unwrap();
    }

    #[test]
    fn what_is_lacking_is_what_the_kernel_refuses_to_make() {
        let lacking = lacking();
        for (kind, backend) in [
            ("ipip local 127.0.0.1", "ipip"),
            ("wireguard", "wireguard"),
            ("bridge", "host-gw"),
            ("vxlan dstport 4790 gpe external", "vxlan-gpe"),
        ] {
            let command = format!("--net ip link add name probe type {kind}");
            let made = std::process::Command::new("unshare")
                .args(command.split(' '))
                .output()
                .unwrap();
            let why = lacking.iter().find(|(name, _)| *name == backend);
            assert_eq!(why.is_none(), made.status.success(), "{backend}: {why:?}");
        }
    }

    #[test]
    fn what_this_kernel_lacks_is_named_with_what_to_do() {
        // Whether a kernel can make these devices is what the probe itself finds
        // out; on one that can there is nothing to refuse.
        let Err(missing) = probe(by_name("ipip", &Settings::default()).unwrap(), both()) else {
            return;
        };
        let text = missing.to_string();
        assert!(
            text.contains("back end ipip") && text.contains("modprobe ip"),
            "{text}"
        );
    }
}
